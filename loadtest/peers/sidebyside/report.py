"""Tables and pictures from the figures of all rounds, which are kept as JSON, one file a row."""

import json
import math
import statistics
from html import escape

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"


def save(folder, row, results, about):
    """Keeps a row's figures."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = [vars(figure) for figure in row.figures]
    # JSON has no word for what is not a number.
    results = {name: [{key: None if math.isnan(value) else value for key, value in figures.items()}
                      for figures in rounds] for name, rounds in results.items()}
    kept = {"key": row.key, "title": row.title, "figures": figures, **about, "results": results}
    (folder / f"row-{row.key}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    (folder / f"row-{row.key}.svg").write_text(picture(kept))
    return kept


def load_all(folder, order):
    found = [folder / f"row-{key}.json" for key in order]
    return [json.loads(path.read_text()) for path in found if path.exists()]


def numbers(rounds, name):
    return [r[name] for r in rounds if r.get(name) is not None]


def told(values, digits, spread=True):
    """The median, with the lowest and the highest."""
    if not values:
        return "–"
    text = f"{statistics.median(values):.{digits}f}"
    if spread and min(values) < max(values):
        text += f" ({min(values):.{digits}f}–{max(values):.{digits}f})"
    return text


def ratios(kept, name, base):
    """The first figure of each round, to that of `base` in the same round: what else the machine does falls on
    both alike."""
    first = kept["figures"][0]["name"]
    pairs = zip(kept["results"][name], kept["results"].get(base, []))
    pairs = [(one.get(first), other.get(first)) for one, other in pairs]
    return [one / other for one, other in pairs if one is not None and other]


def table(kept):
    """As Markdown: the first figure and its ratios with their spread, then the others."""
    figures = kept["figures"]
    titles = [f["title"] + (f", {f['unit']}" if f["unit"] else "") for f in figures]
    bases = [(base, title) for base, title in (("haproxy", "to HAProxy"), ("nginx", "to nginx"))
             if base in kept["results"]]
    lines = ["| | " + " | ".join([titles[0], *(title for _, title in bases), *titles[1:]]) + " |",
             "|---|" + "---:|" * (len(figures) + len(bases))]
    for name, rounds in kept["results"].items():
        cells = [told(numbers(rounds, f["name"]), f["digits"], i == 0 or f["spread"])
                 for i, f in enumerate(figures)]
        to = [told(ratios(kept, name, base), 2) for base, _ in bases]
        shown = f"**{name}**" if name.startswith("forebay") else name
        lines.append(f"| {shown} | " + " | ".join([cells[0], *to, *cells[1:]]) + " |")
    return "\n".join(lines)


def section(kept, pictures):
    """A row's part of the README."""
    rounds = max(len(r) for r in kept["results"].values())
    return (f"#### Row {kept['key']}: {kept['title']}\n\n{table(kept)}\n\n"
            f"![row {kept['key']}]({pictures}/row-{kept['key']}.svg)\n\n"
            f"Rounds: {rounds}; {kept['when']}, load average {kept['load_average']}; commit "
            f"{kept['commit']}.\n")


def readme(path, all_kept, pictures):
    """Puts the latest tables between the marks."""
    text = path.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    machines = sorted({kept["machine"] for kept in all_kept})
    versions = sorted({version for kept in all_kept for version in kept["versions"].values()})
    intro = "Machine: " + "; ".join(machines) + ".\n\nVersions: " + "; ".join(versions) + ".\n"
    parts = "\n".join(section(kept, pictures) for kept in all_kept)
    path.write_text(f"{before}{BEGIN}\n{intro}\n{parts}{END}{after}")


def picture(kept):
    """Bars of the first figure, medians with the spread over the rounds, as SVG."""
    figure = kept["figures"][0]
    bars = [(name, numbers(rounds, figure["name"])) for name, rounds in kept["results"].items()]
    bars = [(name, values) for name, values in bars if values]
    most = max((max(values) for _, values in bars), default=0) or 1
    # One that is far beyond the others would leave nothing of them to see: its bar is cut off.
    usual = statistics.median(statistics.median(values) for _, values in bars) if bars else most
    most = min(most, 4 * usual or most)
    left, width, height, top = 150, 460, 26, 48
    total = top + height * len(bars) + 14
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 110}" height="{total}" '
           'font-family="sans-serif" font-size="13">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="10" y="20" font-weight="bold">{escape(kept["title"])}</text>',
           f'<text x="10" y="38" fill="#555">{escape(", ".join(filter(None, (figure["title"], figure["unit"]))))}: '
           'median, lowest to highest</text>']
    for number, (name, values) in enumerate(bars):
        y = top + number * height
        middle, scale = statistics.median(values), width / most
        colour = "#c2410c" if name.startswith("forebay") else "#94a3b8"
        shown = [min(value, most) * scale for value in (min(values), middle, max(values))]
        low, high = left + shown[0], left + shown[2]
        out += [f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{left}" y="{y + 4}" width="{shown[1]:.1f}" height="16" fill="{colour}"/>',
                f'<path d="M{low:.1f} {y + 12}H{high:.1f}M{low:.1f} {y + 8}v8M{high:.1f} {y + 8}v8" '
                'stroke="#111" fill="none"/>',
                f'<text x="{high + 8:.1f}" y="{y + 16}">'
                f'{middle:.{figure["digits"]}f}</text>']
    return "\n".join(out) + "\n</svg>\n"
