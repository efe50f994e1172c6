//! From text to [`Node`]: recursive descent, one function for each line of the grammar.

use super::{DEEPEST, ExprError, Function, LONGEST, Node, Op, What};

pub(super) fn parse(text: &str) -> Result<Node, ExprError> {
    if text.len() > LONGEST {
        let message = format!("an expression may have {LONGEST} bytes");
        let start = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        return Err(ExprError::new(start, text.len(), message));
    }
    let mut parser = Parser { text, at: 0, depth: 0 };
    let node = parser.comparison()?;
    parser.skip_blanks();
    if parser.at < text.len() {
        return Err(parser.unexpected("an operator or the end"));
    }
    Ok(node)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn comparison(&mut self) -> Result<Node, ExprError> {
        let left = self.sum()?;
        let ops = ["<=", ">=", "==", "!=", "<", ">"];
        let Some(op) = self.take_op(&ops) else { return Ok(left) };
        let right = self.sum()?;
        let both = binary(op, left, right);
        if let Some(second) = self.peek_op(&ops) {
            let message =
                format!("comparisons do not chain: put one in parentheses before `{second}`");
            return Err(self.error_here(message));
        }
        Ok(both)
    }

    fn sum(&mut self) -> Result<Node, ExprError> {
        let mut left = self.product()?;
        while let Some(op) = self.take_op(&["+", "-"]) {
            let right = self.product()?;
            left = deeper(left, op, right)?;
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Node, ExprError> {
        let mut left = self.power()?;
        while let Some(op) = self.take_op(&["*", "/"]) {
            let right = self.power()?;
            left = deeper(left, op, right)?;
        }
        Ok(left)
    }

    fn power(&mut self) -> Result<Node, ExprError> {
        let base = self.unary()?;
        if self.take_op(&["^"]).is_none() {
            return Ok(base);
        }
        let exponent = self.nested(Self::power)?;
        Ok(binary(Op::Power, base, exponent))
    }

    fn unary(&mut self) -> Result<Node, ExprError> {
        self.skip_blanks();
        let start = self.at;
        if self.eat("-") {
            let inner = self.nested(Self::unary)?;
            let end = inner.end;
            return Ok(Node { start, end, what: What::Negative(Box::new(inner)) });
        }
        if self.eat("+") {
            return self.nested(Self::unary);
        }
        self.atom()
    }

    fn atom(&mut self) -> Result<Node, ExprError> {
        self.skip_blanks();
        let start = self.at;
        let Some(first) = self.rest().chars().next() else {
            return Err(self.unexpected("a number, a metric or a function"));
        };
        match first {
            '(' => {
                self.at += 1;
                let inner = self.nested(Self::comparison)?;
                self.expect(")")?;
                Ok(Node { start, end: self.at, what: inner.what })
            }
            '[' => {
                self.at += 1;
                let all = self.list("]")?;
                let node = Node { start, end: self.at, what: What::List(all) };
                if matches!(&node.what, What::List(all) if all.is_empty()) {
                    return Err(node.error("a list needs at least one series"));
                }
                Ok(node)
            }
            '\'' | '"' => self.quoted(first),
            '0'..='9' | '.' => self.number(),
            c if c.is_ascii_alphabetic() || c == '_' => self.named(),
            _ => Err(self.unexpected("a number, a metric or a function")),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<Node, ExprError> {
        let start = self.at;
        let Some(length) = self.text[start + 1..].find(quote) else {
            let message = "this text has no closing quote".to_owned();
            return Err(ExprError::new(start, self.text.len(), message));
        };
        let text = self.text[start + 1..start + 1 + length].to_owned();
        self.at = start + length + 2;
        Ok(Node { start, end: self.at, what: What::Text(text) })
    }

    fn number(&mut self) -> Result<Node, ExprError> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let digits = |mut at: usize| {
            while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            at
        };
        let mut end = digits(start);
        if bytes.get(end) == Some(&b'.') {
            end = digits(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = digits(end + 1 + sign);
            if exponent > end + 1 + sign {
                end = exponent;
            }
        }
        self.at = end;
        match self.text[start..end].parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Node { start, end, what: What::Number(number) }),
            _ => {
                let message = format!("`{}` is no number", &self.text[start..end]);
                Err(ExprError::new(start, end.max(start + 1), message))
            }
        }
    }

    fn named(&mut self) -> Result<Node, ExprError> {
        let start = self.at;
        let length = self.rest().find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let end = length.map_or(self.text.len(), |length| start + length);
        let name = &self.text[start..end];
        self.at = end;
        self.skip_blanks();
        if !self.rest().starts_with('(') {
            self.at = end;
            return Ok(Node { start, end, what: What::Name(name.to_owned()) });
        }
        let Some((_, function)) = Function::ALL.iter().find(|(known, _)| *known == name) else {
            let known = Function::ALL.map(|(name, _)| name).join(", ");
            let message = if name == "SEARCH" {
                "SEARCH is not offered: name each metric under `metrics`, and take them together by METRICS() or METRICS('text')".to_owned()
            } else {
                format!("there is no function `{name}`; there are {known}")
            };
            return Err(ExprError::new(start, end, message));
        };
        self.at += 1;
        let arguments = self.list(")")?;
        Ok(Node { start, end: self.at, what: What::Call(*function, arguments) })
    }

    fn list(&mut self, close: &str) -> Result<Vec<Node>, ExprError> {
        let mut all = Vec::new();
        if self.take(close) {
            return Ok(all);
        }
        loop {
            all.push(self.nested(Self::comparison)?);
            if self.take(close) {
                return Ok(all);
            }
            if !self.take(",") {
                return Err(self.unexpected(&format!("`,` or `{close}`")));
            }
        }
    }

    fn nested(
        &mut self,
        inner: impl Fn(&mut Self) -> Result<Node, ExprError>,
    ) -> Result<Node, ExprError> {
        if self.depth >= DEEPEST {
            return Err(self.error_here(format!("this is nested more than {DEEPEST} deep")));
        }
        self.depth += 1;
        let node = inner(self);
        self.depth -= 1;
        node
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes `what`, which is where we are.
    fn eat(&mut self, what: &str) -> bool {
        let is_here = self.rest().starts_with(what);
        if is_here {
            self.at += what.len();
        }
        is_here
    }

    /// The same behind blanks.
    fn take(&mut self, what: &str) -> bool {
        self.skip_blanks();
        self.eat(what)
    }

    fn peek_op<'s>(&mut self, symbols: &[&'s str]) -> Option<&'s str> {
        self.skip_blanks();
        symbols.iter().find(|symbol| self.rest().starts_with(**symbol)).copied()
    }

    fn take_op(&mut self, symbols: &[&str]) -> Option<Op> {
        let symbol = self.peek_op(symbols)?;
        self.at += symbol.len();
        Op::ALL.iter().find(|(known, _)| *known == symbol).map(|(_, op)| *op)
    }

    fn expect(&mut self, what: &str) -> Result<(), ExprError> {
        if self.take(what) { Ok(()) } else { Err(self.unexpected(&format!("`{what}`"))) }
    }

    fn unexpected(&mut self, wanted: &str) -> ExprError {
        self.skip_blanks();
        let found = match self.rest().chars().next() {
            Some(found) => format!("`{found}`"),
            None => "the end".to_owned(),
        };
        self.error_here(format!("{wanted} is missing before {found}"))
    }

    fn error_here(&self, message: String) -> ExprError {
        let length = self.rest().chars().next().map_or(0, char::len_utf8);
        ExprError::new(self.at, self.at + length, message)
    }
}

fn binary(op: Op, left: Node, right: Node) -> Node {
    let (start, end) = (left.start, right.end);
    Node { start, end, what: What::Binary(op, Box::new(left), Box::new(right)) }
}

/// Joins two; a long chain is a deep tree as well.
fn deeper(left: Node, op: Op, right: Node) -> Result<Node, ExprError> {
    let both = binary(op, left, right);
    if depth(&both) > 4 * DEEPEST {
        return Err(both.error("this is too long; split it by parentheses or functions"));
    }
    Ok(both)
}

/// Levels below a chain's node: only its left side grows without nesting.
fn depth(node: &Node) -> usize {
    let mut depth = 0;
    let mut next = node;
    while let What::Binary(_, left, _) = &next.what {
        depth += 1;
        next = left;
    }
    depth
}
