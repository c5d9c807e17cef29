"""Figures as short SVG text that is the same, character by character, under every version of matplotlib.

Pixels and matplotlib's own SVG change from version to version, mostly because text is measured differently. Here text
stays text, its size comes from a fixed rule, and coordinates are rounded to a tenth of a pixel. So a notebook's stored
pictures can be compared like its numbers.
"""

from base64 import b64encode
from html import escape
from io import BytesIO

from matplotlib import style
from matplotlib.backend_bases import FigureCanvasBase, RendererBase
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

FONTS = "DejaVu Sans, Verdana, sans-serif"
ASCENT, DESCENT = 1556 / 2048, 492 / 2048  # of DejaVu Sans, in ems
WIDE, NARROW = set("MWmw@%—−+=<>✓√∞×…"), set("iljtfrI.,:;|!'()[] ")
LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}


def to_svg(figure: Figure) -> str:
    """The figure as SVG, on a white page."""
    canvas = figure.canvas
    try:
        with style.context("default"):
            renderer = _Canvas(figure).get_renderer()
            figure.draw(renderer)
    finally:
        figure.set_canvas(canvas)
    return renderer.document()


class _Canvas(FigureCanvasBase):
    """Hands matplotlib's layout engine a renderer that measures text by our rule."""

    def get_renderer(self) -> "_Renderer":
        return _Renderer(*self.figure.bbox.size, self.figure.dpi)


class _Renderer(RendererBase):
    def __init__(self, width: float, height: float, dpi: float):
        super().__init__()
        self.width, self.height, self.dpi = width, height, dpi
        self.parts: list[str] = []
        self.clips: dict[str, str] = {}

    def document(self) -> str:
        width, height = f"{self.width:.0f}", f"{self.height:.0f}"
        size = f"width='{width}' height='{height}' viewBox='0 0 {width} {height}'"
        clips = [f"<clipPath id='{name}'><path d='{d}'/></clipPath>" for d, name in self.clips.items()]
        content = "".join(clips + self.parts)
        return f"<svg xmlns='http://www.w3.org/2000/svg' {size} font-family='{FONTS}'>{content}</svg>"

    def get_canvas_width_height(self):
        return self.width, self.height

    def points_to_pixels(self, points):
        return points * self.dpi / 72

    def get_text_width_height_descent(self, s, prop, ismath):
        size = self.points_to_pixels(prop.get_size_in_points())
        ems = sum(0.88 if letter in WIDE else 0.36 if letter in NARROW else 0.62 for letter in s)
        ems *= 1.1 if prop.get_weight() == "bold" else 1.0
        return ems * size, (ASCENT + DESCENT) * size, DESCENT * size

    def draw_path(self, gc, path, transform, rgbFace=None):
        d = self._outline(path, transform)
        stroke = gc.get_rgb() if gc.get_linewidth() else (0, 0, 0, 0)
        seen = rgbFace is not None and (len(rgbFace) < 4 or rgbFace[3] > 0)
        if not d or not (seen or stroke[3]):
            return
        marks = self._colour("fill", rgbFace) if seen else " fill='none'"
        if stroke[3]:
            marks += self._colour("stroke", stroke) + f" stroke-width='{self.points_to_pixels(gc.get_linewidth()):.1f}'"
            dashes = gc.get_dashes()[1]
            if dashes is not None:
                marks += f" stroke-dasharray='{' '.join(f'{self.points_to_pixels(dash):.1f}' for dash in dashes)}'"
            if gc.get_capstyle() == "round":
                marks += " stroke-linecap='round'"
        self.parts.append(f"<path d='{d}'{marks}{self._clip(gc, path, transform)}/>")

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        size = self.points_to_pixels(prop.get_size_in_points())
        if ismath:  # a formula, drawn by its outlines
            place = Affine2D().rotate_deg(angle).translate(x, self.height - y)
            d = self._outline(TextPath((0, 0), s, size=size, prop=prop), place)
            self.parts.append(f"<path d='{d}'{self._colour('fill', gc.get_rgb())}/>")
            return
        # Anchored where the author aligned it, so that a reader's font of another width keeps its place.
        part = {"left": 0.0, "right": 1.0}.get(mtext.get_horizontalalignment() if mtext else "center", 0.5)
        width = self.get_text_width_height_descent(s, prop, ismath)[0]
        x, y = Affine2D().rotate_deg_around(x, y, -angle).transform((x + part * width, y))
        marks = self._colour("fill", gc.get_rgb()) + ("", " text-anchor='middle'", " text-anchor='end'")[int(2 * part)]
        marks += " font-weight='bold'" if prop.get_weight() == "bold" else ""
        marks += " font-style='italic'" if prop.get_style() == "italic" else ""
        marks += " font-family='monospace'" if prop.get_family() == ["monospace"] else ""
        marks += f" transform='rotate({-angle:.1f} {x:.1f} {y:.1f})'" if angle else ""
        self.parts.append(f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size:.1f}'{marks}>{escape(s)}</text>")

    def draw_image(self, gc, x, y, im, transform=None):
        file, (height, width) = BytesIO(), im.shape[:2]
        imsave(file, im, format="png")
        place = f"x='{x:.1f}' y='{self.height - y - height:.1f}' width='{width}' height='{height}'"
        self.parts.append(f"<image {place} href='data:image/png;base64,{b64encode(file.getvalue()).decode()}'/>")

    def _outline(self, path: Path, transform) -> str:
        flipped = transform + Affine2D().scale(1, -1).translate(0, self.height)
        steps = path.iter_segments(flipped, simplify=False)
        return "".join(LETTERS.get(code, "Z") + " ".join(f"{v + 0.0:.1f}" for v in points) * (code in LETTERS)
                       for points, code in steps)  # fmt: skip

    def _colour(self, name: str, rgba) -> str:
        opacity = f" {name}-opacity='{rgba[3]:.2f}'" if len(rgba) == 4 and rgba[3] < 1 else ""
        return f" {name}='{to_hex(rgba)}'{opacity}"

    def _clip(self, gc, path: Path, transform) -> str:
        """Cut off what leaves its axes; most paths do not."""
        edge, extents = gc.get_clip_rectangle(), path.get_extents(transform)
        if edge is None or all(edge.padded(1).fully_contains(*corner) for corner in (extents.min, extents.max)):
            return ""
        d = self._outline(Path.unit_rectangle(), Affine2D().scale(edge.width, edge.height).translate(edge.x0, edge.y0))
        return f" clip-path='url(#{self.clips.setdefault(d, f'c{len(self.clips)}')})'"
