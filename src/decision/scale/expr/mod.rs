//! Metric math: the expressions that a scaling policy may be written in, a subset of CloudWatch's
//! (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html>).
//!
//! ```text
//! expression = comparison
//! comparison = sum [ ("<" | "<=" | ">" | ">=" | "==" | "!=") sum ]
//! sum        = product { ("+" | "-") product }
//! product    = power { ("*" | "/") power }
//! power      = unary [ "^" power ]
//! unary      = { "-" | "+" } atom
//! atom       = number | name | function "(" [ argument { "," argument } ] ")"
//!            | "(" comparison ")" | "[" comparison { "," comparison } "]"
//! argument   = comparison | text | "REPEAT" | "LINEAR"
//! number     = ( digits [ "." [ digits ] ] | "." digits ) [ ("e" | "E") [ "+" | "-" ] digits ]
//! name       = letter { letter | digit | "_" }       a metric's name in the policy
//! text       = "'" any but a quote "'"  |  '"' any but a quote '"'
//! ```
//!
//! | function | of | is |
//! |---|---|---|
//! | `AVG` `MIN` `MAX` `SUM` | a series | one number: over its periods that have data |
//! | | several (`[a, b]`, `METRICS()`) | a series: over those of them that have data, period by period |
//! | `METRICS()`, `METRICS('text')` | – | every metric of the policy, or those whose name contains the text |
//! | `FILL(m, x)` | a series or several | the same with gaps filled: by a number, another series, the last value (`REPEAT`) or a line between both sides (`LINEAR`) |
//! | `IF(c, a, b)` | series or numbers | period by period `a` where `c` is not 0, else `b`; without `b` a gap |
//! | `ABS` `CEIL` `FLOOR` | a series or several | as their names say |
//!
//! A comparison is 1 where it holds and 0 where it does not. Arithmetic on a gap, division by zero and
//! whatever is no finite number are gaps. In each period a metric that has no data counts as 0 (as CloudWatch
//! has it), unless none of the metrics has any: then all is a gap. What `FILL` fills has its gaps. `SEARCH` is
//! not offered: a policy names its metrics, and takes them together by `METRICS`.
//!
//! Properties, each tested: P1 any text is parsed or refused with a place in it, without a panic; P2 what is
//! parsed is shown as text that parses to the same, unless that is longer than [`LONGEST`]; P3 evaluation never
//! fails on what was checked; P4 the depth of an expression, and what it costs, is bounded.

mod eval;
mod parse;
#[cfg(test)]
mod tests;

use std::fmt;

use thiserror::Error;

pub use eval::{Metrics, Series};

/// The longest text that is an expression, in bytes.
pub const LONGEST: usize = 4_096;
/// How deep parentheses, functions and signs may be nested.
pub const DEEPEST: usize = 64;

/// What is wrong with a text, and where: bytes from `start` to `end`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}, at column {column}")]
pub struct ExprError {
    /// The first byte.
    pub start: usize,
    /// The first byte behind it.
    pub end: usize,
    /// The first character, from 1 on.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl ExprError {
    fn new(start: usize, end: usize, message: impl Into<String>) -> Self {
        Self { start, end, column: start + 1, message: message.into() }
    }

    /// Counts characters of `text` instead of bytes.
    fn counted(self, text: &str) -> Self {
        let before = text.get(..self.start).unwrap_or(text);
        Self { column: before.chars().count() + 1, ..self }
    }
}

/// An expression whose names are known and whose result is one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr(Node);

impl Expr {
    /// Parses `text`, in which `names` are metrics.
    ///
    /// # Errors
    /// [`ExprError`], the first mistake.
    pub fn parse(text: &str, names: &[&str]) -> Result<Self, ExprError> {
        Self::read(text, names).map_err(|error| error.counted(text))
    }

    fn read(text: &str, names: &[&str]) -> Result<Self, ExprError> {
        let node = parse::parse(text)?;
        match eval::check(&node, names)? {
            eval::Kind::Several => {
                let message = "this is several series; a policy needs one, such as AVG([a, b])";
                Err(ExprError::new(0, text.len(), message))
            }
            eval::Kind::Number | eval::Kind::Series => Ok(Self(node)),
        }
    }

    /// The value of each period, oldest first; `None` is a gap.
    #[must_use]
    pub fn evaluate(&self, metrics: &Metrics) -> Series {
        eval::evaluate(&self.0, metrics)
    }

    /// The metrics that it is made of.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.0.collect_names(&mut names);
        names
    }

    /// Whether it only grows, or only falls, with each of its metrics, whatever the others are: it shows the most, and
    /// the least, where each of them is at a bound. `false` where that cannot be told by its shape.
    #[must_use]
    pub fn is_monotone(&self) -> bool {
        let mut names = Vec::new();
        let plain = self.0.is_plain(&mut names);
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        plain && names.len() == count && (count < 2 || !names.contains(&ALL_METRICS))
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Stands for `METRICS()` among names, which no metric can have.
const ALL_METRICS: &str = "METRICS()";

/// A part of an expression, and where it stands.
#[derive(Debug, Clone)]
struct Node {
    start: usize,
    end: usize,
    what: What,
}

impl PartialEq for Node {
    /// Wherever it stands.
    fn eq(&self, other: &Self) -> bool {
        self.what == other.what
    }
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Number(f64),
    Name(String),
    Text(String),
    Negative(Box<Node>),
    Binary(Op, Box<Node>, Box<Node>),
    Call(Function, Vec<Node>),
    List(Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Subtract,
    Multiply,
    Divide,
    Power,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

impl Op {
    const ALL: [(&'static str, Self); 11] = [
        ("+", Self::Add),
        ("-", Self::Subtract),
        ("*", Self::Multiply),
        ("/", Self::Divide),
        ("^", Self::Power),
        ("<=", Self::LessOrEqual),
        (">=", Self::GreaterOrEqual),
        ("==", Self::Equal),
        ("!=", Self::NotEqual),
        ("<", Self::Less),
        (">", Self::Greater),
    ];

    fn symbol(self) -> &'static str {
        Self::ALL.iter().find(|(_, op)| *op == self).map_or("", |(symbol, _)| symbol)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Avg,
    Min,
    Max,
    Sum,
    Metrics,
    Fill,
    If,
    Abs,
    Ceil,
    Floor,
}

impl Function {
    const ALL: [(&'static str, Self); 10] = [
        ("AVG", Self::Avg),
        ("MIN", Self::Min),
        ("MAX", Self::Max),
        ("SUM", Self::Sum),
        ("METRICS", Self::Metrics),
        ("FILL", Self::Fill),
        ("IF", Self::If),
        ("ABS", Self::Abs),
        ("CEIL", Self::Ceil),
        ("FLOOR", Self::Floor),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, function)| *function == self).map_or("", |(name, _)| name)
    }
}

impl Node {
    fn error(&self, message: impl Into<String>) -> ExprError {
        ExprError::new(self.start, self.end, message)
    }

    /// Whether it is made of what grows or falls with each of its parts. Adds the name of each metric as often as it is
    /// there.
    fn is_plain<'a>(&'a self, names: &mut Vec<&'a str>) -> bool {
        match &self.what {
            What::Number(_) | What::Text(_) => true,
            What::Name(name) => {
                names.push(name);
                true
            }
            What::Negative(of) => of.is_plain(names),
            What::Binary(op, left, right) => {
                let before = names.len();
                let right = right.is_plain(names);
                let by_a_number = names.len() == before;
                let left = left.is_plain(names);
                let plain = match op {
                    Op::Add | Op::Subtract | Op::Multiply => true,
                    // There is no bound to what is divided by next to nothing.
                    Op::Divide => by_a_number,
                    _ => false,
                };
                left && right && plain
            }
            What::Call(Function::Metrics, _) => {
                names.push(ALL_METRICS);
                true
            }
            What::Call(function, parts) => {
                !matches!(function, Function::If | Function::Abs)
                    && parts.iter().all(|part| part.is_plain(names))
            }
            What::List(parts) => parts.iter().all(|part| part.is_plain(names)),
        }
    }

    fn collect_names<'a>(&'a self, names: &mut Vec<&'a str>) {
        match &self.what {
            What::Name(name) => names.push(name),
            What::Number(_) | What::Text(_) => {}
            What::Negative(inner) => inner.collect_names(names),
            What::Binary(_, left, right) => {
                left.collect_names(names);
                right.collect_names(names);
            }
            What::Call(_, all) | What::List(all) => {
                for one in all {
                    one.collect_names(names);
                }
            }
        }
    }
}

/// How tightly the parts of an expression hold together: the lines of the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binds {
    Comparison,
    Sum,
    Product,
    Power,
    Unary,
    Atom,
}

impl Op {
    /// As what it holds, and as what its left and its right side have to.
    fn binds(self) -> [Binds; 3] {
        match self {
            Self::Add | Self::Subtract => [Binds::Sum, Binds::Sum, Binds::Product],
            Self::Multiply | Self::Divide => [Binds::Product, Binds::Product, Binds::Power],
            Self::Power => [Binds::Power, Binds::Unary, Binds::Power],
            Self::Less
            | Self::LessOrEqual
            | Self::Greater
            | Self::GreaterOrEqual
            | Self::Equal
            | Self::NotEqual => [Binds::Comparison, Binds::Sum, Binds::Sum],
        }
    }
}

impl Node {
    /// In parentheses only where they were written: any more might nest it too deep to be parsed again.
    fn show(&self, f: &mut fmt::Formatter<'_>, least: Binds) -> fmt::Result {
        let binds = match &self.what {
            What::Binary(op, ..) => op.binds()[0],
            What::Negative(_) => Binds::Unary,
            _ => Binds::Atom,
        };
        if binds < least { write!(f, "({self})") } else { write!(f, "{self}") }
    }
}

/// A part of an expression where it has to hold together so tightly.
struct Held<'a>(&'a Node, Binds);

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.show(f, self.1)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, all: &[Self]| {
            for (number, one) in all.iter().enumerate() {
                write!(f, "{}{one}", if number == 0 { "" } else { ", " })?;
            }
            Ok(())
        };
        match &self.what {
            // The shorter way to write it: a large one has hundreds of digits.
            What::Number(number) => {
                let (plain, power) = (number.to_string(), format!("{number:e}"));
                f.write_str(if power.len() < plain.len() { &power } else { &plain })
            }
            What::Name(name) => f.write_str(name),
            What::Text(text) if text.contains('\'') => write!(f, "\"{text}\""),
            What::Text(text) => write!(f, "'{text}'"),
            What::Negative(inner) => write!(f, "-{}", Held(inner, Binds::Unary)),
            What::Binary(op, left, right) => {
                let [_, left_binds, right_binds] = op.binds();
                let (left, right) = (Held(left, left_binds), Held(right, right_binds));
                write!(f, "{left} {} {right}", op.symbol())
            }
            What::Call(function, all) => {
                write!(f, "{}(", function.name())?;
                list(f, all)?;
                f.write_str(")")
            }
            What::List(all) => {
                f.write_str("[")?;
                list(f, all)?;
                f.write_str("]")
            }
        }
    }
}
