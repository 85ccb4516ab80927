"""The picture of cached sampling in docs/explanation, in three parts: `python docs/draw_cache.py` writes them."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from codegrid.pipelines.drawing.figures import new_figure

SIDE, ROW, COLUMN, REACH, LAYERS = 7, 4, 3, 1, 4  # of the grid; the site that is drawn; of a kernel; of the network
KNOWN, KEPT, NEW, LATER = "#d7dde2", "#2a7f8e", "#e07b39", "#ffffff"
LINE, WORDS = "#5b6770", 11


def main() -> None:
    """Draw the three parts, each a file, so that a narrow page can show them one below the other."""
    for name, draw in (("rows", draw_rows), ("chain", draw_chain), ("work", draw_work)):
        figure = new_figure(3.7, 3.8)
        draw(figure.subplots())
        figure.savefig(Path(__file__).parent / f"cached-{name}.png")


def draw_rows(axes: Axes) -> None:
    """Draw the vertical stack: a row of all sites at once, from the rows that a kernel reaches."""
    for row in range(SIDE):
        for column in range(SIDE):
            is_kept = ROW - REACH <= row < ROW
            colour = NEW if row == ROW else KEPT if is_kept else KNOWN if row < ROW else LATER
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor=LINE, linewidth=0.8))
    axes.set(xlim=(-0.1, SIDE + 0.1), ylim=(SIDE + 0.1, -0.1), aspect="equal")
    _finish(axes, "1. Vertical stack, in each layer:\na whole row, when it begins")


def draw_chain(axes: Axes) -> None:
    """Draw the horizontal stack: the features of one site, layer after layer, from those on its left."""
    for layer in range(LAYERS):
        for column in range(SIDE):
            is_kept = COLUMN - REACH <= column < COLUMN and layer + 1 < LAYERS
            _box(
                axes,
                column,
                layer,
                NEW if column == COLUMN else KEPT if is_kept else KNOWN if column < COLUMN else LATER,
            )
        axes.text(-0.25, 2 * layer + 0.4, f"layer {layer + 1}", ha="right", va="center", fontsize=WORDS - 1)
        for column in range(COLUMN - REACH if layer + 1 < LAYERS else COLUMN, COLUMN + 1):
            ends = (column + 0.5, 2 * layer + 0.8), (COLUMN + 0.5, 2 * layer + 2)
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color=LINE))
    _box(axes, COLUMN, LAYERS, NEW)
    axes.text(COLUMN + 1.1, 2 * LAYERS + 0.4, "its code", va="center", fontsize=WORDS - 1)
    axes.set(xlim=(-1.9, SIDE + 0.1), ylim=(-0.1, 2 * LAYERS + 0.9), aspect="equal")
    _finish(axes, "2. Horizontal stack, in this row:\na site, through all layers")


def _box(axes: Axes, column: int, layer: int, colour: str) -> None:
    axes.add_patch(Rectangle((column + 0.1, 2 * layer), 0.8, 0.8, facecolor=colour, edgecolor=LINE, linewidth=0.8))


def draw_work(axes: Axes) -> None:
    """Draw the features that are computed in one layer, of one grid, over the codes that are drawn."""
    sites = SIDE * SIDE
    drawn = list(range(sites + 1))
    axes.plot(drawn, [number * sites for number in drawn], color=LINE, linewidth=2)
    axes.plot(drawn, drawn, color=NEW, linewidth=2.5)
    axes.text(sites * 0.55, sites * sites * 0.66, "a forward pass\nfor each code", ha="right", fontsize=WORDS)
    axes.text(sites, sites * sites * 0.055, "with a cache", ha="right", fontsize=WORDS)
    axes.set(xlim=(0, sites), ylim=(0, sites * sites))
    axes.set_xlabel(f"codes drawn, of {SIDE}×{SIDE}", fontsize=WORDS)
    axes.set_ylabel("features computed in one layer", fontsize=WORDS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"3. The work:\n{sites} forward passes, or one", fontsize=WORDS + 1, pad=10)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=WORDS + 1, pad=10)
    axes.axis("off")


if __name__ == "__main__":
    main()
