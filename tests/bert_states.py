"""What transformers 5.24.0 computes for twenty texts with the weights of all-MiniLM-L6-v2: numbers to compare with.

STATES has six numbers of the last states of each text: 0 and 191 of [CLS], 1 and 200 of the token in the middle, 7 and
383 of [SEP]. benchmarks/bench_encoder.py compares all numbers.
"""

# fmt: off
STATES = {
    "That is a happy person": (-0.067370, 0.083765, 0.382549, 1.393440, 0.233657, -0.068324),
    "That is a very happy person": (-0.067290, 0.219732, 0.275173, 1.984924, 0.269481, -0.212525),
    "Today is a sunny day": (-0.393875, 0.050833, 0.467007, 0.334096, -0.325142, 0.202063),
    "Your journey starts with one step": (-0.023886, 0.407081, -0.082699, -0.106375, -0.170437, -0.736830),
    "": (0.006044, 0.114712, 0.587224, 0.634687, 0.076932, -0.045942),
    "?": (-0.037116, 0.156704, -0.435412, 0.052453, -0.538847, 0.217601),
    "She sat on the bank of the river.": (0.210485, 0.055115, 0.478259, 0.393395, 0.441043, -0.121979),
    "He opened an account at the bank.": (0.195569, 0.040159, 0.518127, -0.279444, 0.458533, -0.333353),
    "Why divide by the root?": (0.029790, 0.107690, 0.065814, -0.161266, 0.141023, -0.128598),
    "Attention is a weighted average of values, and the weights come from a softmax. " * 12:
        (0.214709, 0.209613, 0.003386, -0.691794, 0.424976, 0.043621),
    "naïve façade, Ærøskøbing and 東京": (0.366479, 0.255045, 0.416323, 0.087248, -0.458075, 0.793190),
    "42 + 58 = 100; 3.14159 is close to pi": (0.102462, 0.274793, 0.385160, 0.206352, 1.020859, -0.022668),
    "def attend(query, key, value): return softmax(query @ key.mT) @ value":
        (-0.041260, 0.200775, -1.163562, 0.046165, 0.115073, 0.117590),
    "antidisestablishmentarianism": (0.224547, 0.134869, -0.009815, 0.090138, -0.313713, 0.446303),
    "No.": (-0.105959, 0.241311, 0.258896, 0.331536, -0.236830, -0.221413),
    "The cat sat on the mat because it was warm.": (0.419850, -0.331003, -0.044262, -0.362981, 0.058417, 0.477985),
    "The mat sat on the cat because it was warm.": (0.332436, -0.278231, -0.183146, -0.070920, -0.042538, 0.584514),
    "Please call me back before Thursday, if you can.": (-0.205653, 0.138268, -0.105485, 0.734781, 0.082219, -0.314734),
    "one two three four five six seven eight nine ten " * 30:
        (0.176057, 0.510440, 0.043362, -0.087470, -0.135345, 0.257336),
    "LSH hashes similar keys into the same bucket.": (0.049698, 0.548649, -0.222057, -0.364549, -0.192065, -0.010083),
}
