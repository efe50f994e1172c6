//! A picture of the fleet over time (SVG): the instances in service as stacked areas by type, what starts or
//! leaves in grey on top of them, the desired count as a line; below it the requests that wait and those that
//! come. Several reports are drawn one below the other on the same scales, so that they can be compared.

use std::fmt::Write as _;

use super::{Moment, Report};

/// Tellable apart also by people who see colours differently (Okabe and Ito).
const COLOURS: [&str; 7] =
    ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#7f5f3f"];
const IDLE: &str = "#d0d0d0";
const WAITING: &str = "#d55e00";
const ASKED: &str = "#555555";

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 780.0;
const TITLE: f64 = 34.0;
const FLEET: f64 = 240.0;
const SMALL: f64 = 80.0;
const GAP: f64 = 22.0;
const FOOT: f64 = 44.0;
const EACH: f64 = TITLE + FLEET + GAP + SMALL + GAP + SMALL + FOOT;

/// Draws `reports`, each under its title.
#[must_use]
pub fn picture(reports: &[(&str, &Report)]) -> String {
    let height = EACH * reports.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let most = |of: fn(&Report, usize) -> f64| {
        let all = reports.iter().flat_map(|(_, report)| {
            (0..report.timeline.len()).map(move |moment| of(report, moment))
        });
        all.fold(0.0, f64::max)
    };
    let tops = [
        most(|r, at| {
            let moment = &r.timeline[at];
            f64::from(moment.desired.max(moment.idle + moment.serving.iter().sum::<u32>()))
        }),
        most(|r, at| f64::from(r.timeline[at].waiting)),
        most(|r, at| rate(&r.timeline, at)),
    ];
    let length = reports.iter().map(|(_, report)| report.length_s).fold(0.0, f64::max);
    for (number, (title, report)) in reports.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", EACH * number as f64);
        draw(&mut svg, title, report, length, tops);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, title: &str, report: &Report, length: f64, tops: [f64; 3]) {
    text(svg, LEFT, 20.0, "start", 15, &format!("{title}, seed {}", report.seed));
    let x = |at: f64| LEFT + (RIGHT - LEFT) * at / length.max(1.0);
    let (fleet, waiting) = (TITLE, TITLE + FLEET + GAP);
    let asked = waiting + SMALL + GAP;
    let [fleet, waiting, asked] = [
        Panel::new(fleet, FLEET, tops[0]),
        Panel::new(waiting, SMALL, tops[1]),
        Panel::new(asked, SMALL, tops[2]),
    ];
    fleet.frame(svg, "instances");
    waiting.frame(svg, "waiting");
    asked.frame(svg, "requests/s");
    times(svg, x, length, asked.bottom());

    let line = &report.timeline;
    let mut below = vec![0.0; line.len()];
    for (layer, colour) in layers(report).into_iter().chain([(usize::MAX, IDLE)]) {
        let count = |m: &Moment| f64::from(m.serving.get(layer).copied().unwrap_or(m.idle));
        let above: Vec<f64> = line.iter().zip(&below).map(|(m, base)| base + count(m)).collect();
        if above != below {
            area(svg, line, x, &fleet, [&above, &below], colour);
        }
        below = above;
    }
    let desired: Vec<f64> = line.iter().map(|moment| f64::from(moment.desired)).collect();
    outline(svg, &steps(line, x, &fleet, &desired), "black", 1.8);
    let nothing = vec![0.0; line.len()];
    let waits: Vec<f64> = line.iter().map(|moment| f64::from(moment.waiting)).collect();
    area(svg, line, x, &waiting, [&waits, &nothing], WAITING);
    let rates: Vec<f64> = (0..line.len()).map(|at| rate(line, at)).collect();
    outline(svg, &steps(line, x, &asked, &rates), ASKED, 1.2);
    let failed = line.iter().filter(|moment| moment.failed > 0);
    for moment in failed {
        let (at, y) = (x(moment.at_s), waiting.bottom());
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#b00000\"/>",
            y + 2.0,
            y + 9.0
        );
    }
    legend(svg, report, &fleet, &waiting);
}

/// The types by their position in the report, those of the best priority first, each with its colour.
fn layers(report: &Report) -> Vec<(usize, &'static str)> {
    let mut kinds: Vec<usize> = (0..report.types.len()).collect();
    let priorities: Vec<u32> = report.types.values().map(|figures| figures.priority).collect();
    kinds.sort_by_key(|kind| (priorities[*kind], *kind));
    kinds.into_iter().zip(COLOURS.iter().copied().cycle()).collect()
}

fn legend(svg: &mut String, report: &Report, fleet: &Panel, waiting: &Panel) {
    let mut y = fleet.top + 10.0;
    let at = RIGHT + 16.0;
    let mut entry = |colour: &str, name: &str| {
        let box_y = y - 9.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"{box_y:.1}\" width=\"11\" height=\"11\" fill=\"{colour}\"/>"
        );
        text(svg, at + 17.0, y, "start", 12, name);
        y += 18.0;
    };
    let names: Vec<_> = report.types.keys().collect();
    for (kind, colour) in layers(report) {
        entry(colour, names[kind].as_str());
    }
    entry(IDLE, "starting or leaving");
    entry("black", "desired (line)");
    let figures = [
        format!("available {:.3} %", report.availability * 100.0),
        format!("full size {:.1} % of the time", report.full_share * 100.0),
        format!("fallback {:.1} %", report.fallback_share * 100.0),
        format!("cost {:.2}", report.cost),
    ];
    y += 8.0;
    for figure in figures {
        text(svg, at, y, "start", 12, &figure);
        y += 17.0;
    }
    let y = waiting.top + 12.0;
    text(svg, at, y, "start", 12, &format!("wait p50 {:.1} s", report.waits.p50_s));
    text(svg, at, y + 17.0, "start", 12, &format!("wait p99 {:.1} s", report.waits.p99_s));
    let failed = report.requests.refused() + report.requests.lost;
    text(svg, at, y + 34.0, "start", 12, &format!("{failed} refused or lost"));
    let _ = writeln!(
        svg,
        "<line x1=\"{at}\" x2=\"{at}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#b00000\"/>",
        waiting.bottom() + 2.0,
        waiting.bottom() + 9.0
    );
    text(svg, at + 8.0, waiting.bottom() + 10.0, "start", 12, "some refused or lost");
}

/// One plot: where it stands and what its height means.
struct Panel {
    top: f64,
    height: f64,
    /// The largest value on its axis.
    most: f64,
    step: f64,
}

impl Panel {
    fn new(top: f64, height: f64, most: f64) -> Self {
        let step = round_step(most / (height / 40.0));
        let most = ((most / step).ceil() * step).max(step);
        Self { top, height, most, step }
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom() - self.height * value / self.most
    }

    /// The axis, its marks, and its name.
    fn frame(&self, svg: &mut String, name: &str) {
        let mut mark = 0.0;
        while mark <= self.most * 1.0001 {
            let y = self.y(mark);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e4e4e4\"/>"
            );
            text(
                svg,
                LEFT - 6.0,
                y + 4.0,
                "end",
                11,
                &format!("{}", (mark * 100.0).round() / 100.0),
            );
            mark += self.step;
        }
        let (x, y) = (16.0, self.top + self.height / 2.0);
        let _ = writeln!(
            svg,
            "<text transform=\"translate({x} {y:.1}) rotate(-90)\" text-anchor=\"middle\" \
             font-size=\"11\">{name}</text>"
        );
    }
}

/// Marks on the time axis, in whatever unit gives about eight.
fn times(svg: &mut String, x: impl Fn(f64) -> f64, length: f64, y: f64) {
    const STEPS: [(f64, f64, &str); 12] = [
        (10.0, 1.0, "s"),
        (60.0, 60.0, "min"),
        (300.0, 60.0, "min"),
        (600.0, 60.0, "min"),
        (1200.0, 60.0, "min"),
        (3600.0, 3600.0, "h"),
        (7200.0, 3600.0, "h"),
        (14_400.0, 3600.0, "h"),
        (28_800.0, 3600.0, "h"),
        (86_400.0, 86_400.0, "d"),
        (604_800.0, 86_400.0, "d"),
        (2_592_000.0, 86_400.0, "d"),
    ];
    let fits = |(step, _, _): &&(f64, f64, &str)| length / step <= 10.0;
    let (step, unit, name) = STEPS.iter().find(fits).copied().unwrap_or(STEPS[11]);
    let mut at = 0.0;
    while at <= length {
        let mark = x(at);
        let _ = writeln!(
            svg,
            "<line x1=\"{mark:.1}\" x2=\"{mark:.1}\" y1=\"{y:.1}\" y2=\"{:.1}\" stroke=\"#888888\"/>",
            y + 4.0
        );
        text(svg, mark, y + 17.0, "middle", 11, &format!("{} {name}", at / unit));
        at += step;
    }
}

/// A polygon between two lines of steps.
fn area(
    svg: &mut String,
    line: &[Moment],
    x: impl Fn(f64) -> f64,
    panel: &Panel,
    [above, below]: [&[f64]; 2],
    colour: &str,
) {
    let mut points = steps(line, &x, panel, above);
    points.extend(steps(line, x, panel, below).into_iter().rev());
    let _ = writeln!(svg, "<polygon points=\"{}\" fill=\"{colour}\"/>", path(&points));
}

fn outline(svg: &mut String, points: &[(f64, f64)], colour: &str, width: f64) {
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
        path(points)
    );
}

/// Each value holds until the next moment. Points where nothing changes are left out.
fn steps(
    line: &[Moment],
    x: impl Fn(f64) -> f64,
    panel: &Panel,
    values: &[f64],
) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    let last = line.len().saturating_sub(1);
    for (number, (moment, value)) in line.iter().zip(values).enumerate() {
        let (at, y) = (x(moment.at_s), panel.y(*value));
        match points.last().copied() {
            Some((_, before)) if (before - y).abs() > 0.01 => {
                points.extend([(at, before), (at, y)]);
            }
            Some(_) if number < last => {}
            _ => points.push((at, y)),
        }
    }
    points
}

fn path(points: &[(f64, f64)]) -> String {
    points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// Requests per second that came before a moment.
fn rate(line: &[Moment], at: usize) -> f64 {
    let before = at.checked_sub(1).map_or(0.0, |before| line[before].at_s);
    let span = line[at].at_s - before;
    if span > 0.0 { line[at].asked as f64 / span } else { 0.0 }
}

/// 1, 2 or 5 times a power of ten that is not less than `step`.
fn round_step(step: f64) -> f64 {
    if step <= 0.0 {
        return 1.0;
    }
    let ten = 10_f64.powf(step.log10().floor());
    let fits = [1.0, 2.0, 5.0].into_iter().find(|times| times * ten >= step);
    fits.unwrap_or(10.0) * ten
}

/// As XML has it: what it has no way to say at all is shown as U+FFFD.
fn escaped(words: &str) -> String {
    let mut all = String::with_capacity(words.len());
    for one in words.chars() {
        match one {
            '&' => all.push_str("&amp;"),
            '<' => all.push_str("&lt;"),
            '>' => all.push_str("&gt;"),
            '\u{fffe}' | '\u{ffff}' => all.push('\u{fffd}'),
            _ if one.is_control() => all.push('\u{fffd}'),
            _ => all.push(one),
        }
    }
    all
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, size: u32, words: &str) {
    let words = escaped(words);
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_text_in_xml() {
        assert_eq!(
            escaped("a ]]> & <b>\u{1}\u{85}\n\u{ffff}é"),
            "a ]]&gt; &amp; &lt;b&gt;\u{fffd}\u{fffd}\u{fffd}\u{fffd}é"
        );
    }
}
