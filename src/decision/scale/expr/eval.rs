//! What an expression means: which kinds of value fit where, and the value of each period.

use std::collections::BTreeMap;

use super::{ExprError, Function, Node, Op, What};

/// A value for each period, oldest first; `None` is a gap.
pub type Series = Vec<Option<f64>>;

/// The metrics of a policy over the same periods.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    periods: usize,
    series: BTreeMap<String, Series>,
    /// In which periods any of them has data.
    has_data: Vec<bool>,
}

impl Metrics {
    /// Over so many periods; shorter series have gaps at their beginning.
    #[must_use]
    pub fn new(periods: usize, series: BTreeMap<String, Series>) -> Self {
        let mut series = series;
        for one in series.values_mut() {
            let missing = periods.saturating_sub(one.len());
            one.splice(0..0, std::iter::repeat_n(None, missing));
            one.drain(..one.len() - periods);
        }
        let has_data = |period: usize| series.values().any(|one: &Series| one[period].is_some());
        let has_data = (0..periods).map(has_data).collect();
        Self { periods, series, has_data }
    }
}

/// How an expression sees its metrics.
#[derive(Clone, Copy)]
struct View<'a> {
    metrics: &'a Metrics,
    periods: usize,
    /// Gaps are gaps, for somebody who fills them.
    with_gaps: bool,
}

impl View<'_> {
    /// In a period in which another one has data, one that has none is 0.
    fn get(&self, name: &str) -> Series {
        let Some(known) = self.metrics.series.get(name) else {
            let zero = |has_data: &bool| Some(0.0).filter(|_| *has_data && !self.with_gaps);
            return self.metrics.has_data.iter().map(zero).collect();
        };
        let all = known.iter().zip(&self.metrics.has_data);
        all.map(|(one, has_data)| one.or((*has_data && !self.with_gaps).then_some(0.0))).collect()
    }
}

/// What a part of an expression is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Series,
    Several,
}

/// What `node` is, if all in it fits.
pub(super) fn check(node: &Node, names: &[&str]) -> Result<Kind, ExprError> {
    match &node.what {
        What::Number(_) => Ok(Kind::Number),
        What::Text(_) => Err(node.error("a text has a meaning only in METRICS('…')")),
        What::Name(name) if names.contains(&name.as_str()) => Ok(Kind::Series),
        What::Name(name) => {
            let known = if names.is_empty() {
                "the policy names none".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            Err(node.error(format!("no metric is called `{name}`; {known}")))
        }
        What::Negative(inner) => check(inner, names),
        What::Binary(_, left, right) => {
            let (a, b) = (check(left, names)?, check(right, names)?);
            if a == Kind::Several && b == Kind::Several {
                let rule = "both sides are several series; at most one may be";
                return Err(node.error(rule));
            }
            Ok(widest(a, b))
        }
        What::List(all) => {
            for one in all {
                if check(one, names)? == Kind::Several {
                    return Err(one.error("a list in a list has no meaning"));
                }
            }
            Ok(Kind::Several)
        }
        What::Call(function, arguments) => check_call(node, *function, arguments, names),
    }
}

fn check_call(
    node: &Node,
    function: Function,
    arguments: &[Node],
    names: &[&str],
) -> Result<Kind, ExprError> {
    let count = |least: usize, most: usize| {
        if (least..=most).contains(&arguments.len()) {
            return Ok(());
        }
        let wanted = if least == most { format!("{least}") } else { format!("{least} to {most}") };
        let name = function.name();
        Err(node.error(format!("{name} takes {wanted} arguments, not {}", arguments.len())))
    };
    match function {
        Function::Metrics => {
            count(0, 1)?;
            match arguments {
                [] => {}
                [Node { what: What::Text(part), .. }] => {
                    if !names.iter().any(|name| name.contains(part.as_str())) {
                        return Err(node.error(format!("no metric's name contains `{part}`")));
                    }
                }
                [other, ..] => return Err(other.error("METRICS takes a text in quotes")),
            }
            if names.is_empty() {
                return Err(node.error("the policy names no metrics"));
            }
            Ok(Kind::Several)
        }
        Function::Avg | Function::Min | Function::Max | Function::Sum => {
            count(1, 1)?;
            Ok(match check(&arguments[0], names)? {
                Kind::Several => Kind::Series,
                Kind::Series | Kind::Number => Kind::Number,
            })
        }
        Function::Fill => {
            count(2, 2)?;
            let kind = check(&arguments[0], names)?;
            let by = &arguments[1];
            if !is_way_to_fill(by) && check(by, names)? == Kind::Several {
                return Err(by.error("gaps are filled by a number, one series, REPEAT or LINEAR"));
            }
            Ok(widest(kind, Kind::Series))
        }
        Function::If => {
            count(2, 3)?;
            let mut kind = Kind::Number;
            for argument in arguments {
                let this = check(argument, names)?;
                if this == Kind::Several {
                    return Err(argument.error("IF takes numbers and single series"));
                }
                kind = widest(kind, this);
            }
            Ok(if arguments.len() == 2 { Kind::Series } else { kind })
        }
        Function::Abs | Function::Ceil | Function::Floor => {
            count(1, 1)?;
            check(&arguments[0], names)
        }
    }
}

fn is_way_to_fill(node: &Node) -> bool {
    matches!(&node.what, What::Name(name) if name == "REPEAT" || name == "LINEAR")
}

fn widest(a: Kind, b: Kind) -> Kind {
    match (a, b) {
        (Kind::Several, _) | (_, Kind::Several) => Kind::Several,
        (Kind::Series, _) | (_, Kind::Series) => Kind::Series,
        (Kind::Number, Kind::Number) => Kind::Number,
    }
}

/// What a part of an expression has come to.
enum Value {
    Number(Option<f64>),
    Series(Series),
    Several(Vec<Series>),
}

pub(super) fn evaluate(node: &Node, metrics: &Metrics) -> Series {
    let view = View { metrics, periods: metrics.periods, with_gaps: false };
    series(node, view)
}

fn series(node: &Node, metrics: View<'_>) -> Series {
    value(node, metrics).into_series(metrics.periods)
}

impl Value {
    fn into_series(self, periods: usize) -> Series {
        match self {
            Self::Number(number) => vec![number; periods],
            Self::Series(series) => series,
            // Nothing that was checked comes here.
            Self::Several(_) => vec![None; periods],
        }
    }

    fn into_several(self) -> Vec<Series> {
        match self {
            Self::Number(number) => vec![vec![number]],
            Self::Series(series) => vec![series],
            Self::Several(all) => all,
        }
    }

    fn map(self, each: impl Fn(f64) -> f64) -> Self {
        let each = |one: Option<f64>| one.and_then(|one| finite(each(one)));
        match self {
            Self::Number(number) => Self::Number(each(number)),
            Self::Series(series) => Self::Series(series.into_iter().map(each).collect()),
            Self::Several(all) => Self::Several(
                all.into_iter().map(|one| one.into_iter().map(each).collect()).collect(),
            ),
        }
    }
}

fn finite(number: f64) -> Option<f64> {
    Some(number).filter(|number| number.is_finite())
}

fn value(node: &Node, metrics: View<'_>) -> Value {
    match &node.what {
        What::Number(number) => Value::Number(Some(*number)),
        What::Text(_) => Value::Number(None),
        What::Name(name) => Value::Series(metrics.get(name)),
        What::Negative(inner) => value(inner, metrics).map(|one| -one),
        What::List(all) => Value::Several(all.iter().map(|one| series(one, metrics)).collect()),
        What::Binary(op, left, right) => {
            combine(*op, value(left, metrics), value(right, metrics), metrics.periods)
        }
        What::Call(function, arguments) => call(*function, arguments, metrics),
    }
}

fn combine(op: Op, left: Value, right: Value, periods: usize) -> Value {
    let both = |a: Option<f64>, b: Option<f64>| apply(op, a?, b?);
    let zip = |a: Series, b: Series| a.into_iter().zip(b).map(|(a, b)| both(a, b)).collect();
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => Value::Number(both(a, b)),
        (Value::Several(all), other) => {
            let other = other.into_series(periods);
            Value::Several(all.into_iter().map(|one| zip(one, other.clone())).collect())
        }
        (other, Value::Several(all)) => {
            let other = other.into_series(periods);
            Value::Several(all.into_iter().map(|one| zip(other.clone(), one)).collect())
        }
        (a, b) => Value::Series(zip(a.into_series(periods), b.into_series(periods))),
    }
}

#[allow(clippy::float_cmp, reason = "`==` is asked for by whoever wrote it")]
fn apply(op: Op, a: f64, b: f64) -> Option<f64> {
    let holds = |it: bool| f64::from(u8::from(it));
    finite(match op {
        Op::Add => a + b,
        Op::Subtract => a - b,
        Op::Multiply => a * b,
        Op::Divide => a / b,
        Op::Power => a.powf(b),
        Op::Less => holds(a < b),
        Op::LessOrEqual => holds(a <= b),
        Op::Greater => holds(a > b),
        Op::GreaterOrEqual => holds(a >= b),
        Op::Equal => holds(a == b),
        Op::NotEqual => holds(a != b),
    })
}

fn call(function: Function, arguments: &[Node], metrics: View<'_>) -> Value {
    let argument = |number: usize| value(&arguments[number], metrics);
    match function {
        Function::Metrics => {
            let part = match arguments.first().map(|node| &node.what) {
                Some(What::Text(part)) => part.as_str(),
                _ => "",
            };
            let names = metrics.metrics.series.keys().filter(|name| name.contains(part));
            Value::Several(names.map(|name| metrics.get(name)).collect())
        }
        Function::Avg | Function::Min | Function::Max | Function::Sum => match argument(0) {
            Value::Several(all) => Value::Series(
                (0..metrics.periods)
                    .map(|period| fold(function, all.iter().map(|one| one[period])))
                    .collect(),
            ),
            other => Value::Number(fold(
                function,
                other.into_several().into_iter().flatten().collect::<Vec<_>>().into_iter(),
            )),
        },
        Function::Fill => {
            let by = &arguments[1];
            let way = match &by.what {
                What::Name(name) if name == "REPEAT" => Way::Repeat,
                What::Name(name) if name == "LINEAR" => Way::Linear,
                _ => Way::By(series(by, metrics)),
            };
            match value(&arguments[0], View { with_gaps: true, ..metrics }) {
                Value::Several(all) => {
                    Value::Several(all.into_iter().map(|one| fill(one, &way)).collect())
                }
                other => Value::Series(fill(other.into_series(metrics.periods), &way)),
            }
        }
        Function::If => {
            let (condition, then) = (argument(0), argument(1));
            let otherwise = if arguments.len() == 3 {
                argument(2)
            } else {
                Value::Series(vec![None; metrics.periods])
            };
            let choose = |c: Option<f64>, a, b| if c? == 0.0 { b } else { a };
            match (condition, then, otherwise) {
                (Value::Number(c), Value::Number(a), Value::Number(b)) => {
                    Value::Number(choose(c, a, b))
                }
                (c, a, b) => {
                    let [c, a, b] = [c, a, b].map(|value| value.into_series(metrics.periods));
                    let all = c.into_iter().zip(a).zip(b);
                    Value::Series(all.map(|((c, a), b)| choose(c, a, b)).collect())
                }
            }
        }
        Function::Abs => argument(0).map(f64::abs),
        Function::Ceil => argument(0).map(f64::ceil),
        Function::Floor => argument(0).map(f64::floor),
    }
}

fn fold(function: Function, values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let there: Vec<f64> = values.flatten().collect();
    if there.is_empty() {
        return None;
    }
    finite(match function {
        Function::Min => there.iter().copied().fold(f64::INFINITY, f64::min),
        Function::Max => there.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        Function::Sum => there.iter().sum(),
        _ => there.iter().sum::<f64>() / there.len() as f64,
    })
}

enum Way {
    By(Series),
    Repeat,
    Linear,
}

/// Gaps before the first value have nothing to repeat or to draw a line from, and stay.
fn fill(series: Series, way: &Way) -> Series {
    match way {
        Way::By(other) => series.into_iter().zip(other).map(|(one, by)| one.or(*by)).collect(),
        Way::Repeat => {
            let mut last = None;
            series
                .into_iter()
                .map(|one| {
                    last = one.or(last);
                    last
                })
                .collect()
        }
        Way::Linear => {
            let known: Vec<(usize, f64)> =
                series.iter().enumerate().filter_map(|(at, one)| Some((at, (*one)?))).collect();
            let mut filled = series;
            for pair in known.windows(2) {
                let [(from, a), (to, b)] = [pair[0], pair[1]];
                for (at, gap) in filled.iter_mut().enumerate().take(to).skip(from + 1) {
                    let share = (at - from) as f64 / (to - from) as f64;
                    *gap = finite(a + (b - a) * share);
                }
            }
            filled
        }
    }
}
