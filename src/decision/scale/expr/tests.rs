//! Every line of the grammar and of the table of functions, and what holds of any text.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const OPS: [&str; 11] = ["+", "-", "*", "/", "^", "<", "<=", ">", ">=", "==", "!="];
const NAMES: [&str; 3] = ["p5", "g6", "queue"];

fn metrics(all: &[(&str, &[Option<f64>])]) -> Metrics {
    let periods = all.iter().map(|(_, series)| series.len()).max().unwrap_or(0);
    let series = all.iter().map(|(name, series)| ((*name).to_owned(), series.to_vec()));
    Metrics::new(periods, series.collect::<BTreeMap<_, _>>())
}

fn some(values: &[f64]) -> Vec<Option<f64>> {
    values.iter().copied().map(Some).collect()
}

fn eval(text: &str) -> Series {
    let all = metrics(&[
        ("p5", &[Some(10.0), None, Some(20.0)]),
        ("g6", &[Some(2.0), Some(4.0), Some(8.0)]),
        ("queue", &[Some(0.0), Some(0.0), Some(1.0)]),
    ]);
    Expr::parse(text, &NAMES).unwrap_or_else(|error| panic!("{text}: {error}")).evaluate(&all)
}

fn refused(text: &str) -> String {
    match Expr::parse(text, &NAMES) {
        Err(error) => error.to_string(),
        Ok(expr) => panic!("{text} is {expr}"),
    }
}

/// SageMaker's published example: the utilisation of a fleet of two types, and what it comes to.
#[test]
fn the_published_table() {
    let expr = Expr::parse("(p5 / 20 + g6 / 8) / 2", &NAMES).expect("an expression");
    for (p5, g6, utilization) in
        [(5.0, 2.0, 0.25), (12.0, 5.0, 0.61), (18.0, 7.0, 0.89), (14.0, 6.0, 0.73)]
    {
        let all = metrics(&[("p5", &[Some(p5)]), ("g6", &[Some(g6)])]);
        let value = expr.evaluate(&all)[0].expect("a value");
        assert!((value - utilization).abs() < 0.006, "({p5}, {g6}): {value}");
    }
    // A fleet of one type alone never shows more than half.
    let alone = metrics(&[("p5", &[Some(20.0)])]);
    assert_eq!(expr.evaluate(&alone), some(&[0.5]));
    assert_eq!(expr.evaluate(&metrics(&[("p5", &[None])])), [None], "no data at all is no data");
}

#[test]
fn operators_bind_as_usual() {
    for (text, value) in [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("2 * 3 ^ 2", 18.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("-2 ^ 2", 4.0),
        ("8 - 3 - 2", 3.0),
        ("12 / 2 / 3", 2.0),
        ("1 < 2", 1.0),
        ("1 + 1 != 2", 0.0),
        ("--1", 1.0),
        ("+1", 1.0),
        ("1.5e2 + .5 + 5.", 155.5),
    ] {
        assert_eq!(eval(text), some(&[value; 3]), "{text}");
    }
    assert_eq!(eval("1 / 0"), [None; 3]);
    assert_eq!(eval("g6 / queue"), [None, None, Some(8.0)]);
}

#[test]
fn functions_are_what_the_table_says() {
    let gap = None;
    assert_eq!(eval("p5 + g6"), some(&[12.0, 4.0, 28.0]));
    assert_eq!(eval("AVG(p5)"), some(&[10.0; 3]));
    assert_eq!(eval("AVG([p5, g6])"), some(&[6.0, 2.0, 14.0]));
    assert_eq!(eval("AVG(p5 / p5)"), some(&[1.0; 3]), "over what is there");
    assert_eq!(eval("AVG([p5 / p5, g6])"), some(&[1.5, 4.0, 4.5]), "of those that are");
    assert_eq!(eval("MAX(METRICS())"), some(&[10.0, 4.0, 20.0]));
    assert_eq!(eval("MIN(METRICS('6'))"), some(&[2.0, 4.0, 8.0]));
    assert_eq!(eval("SUM([p5 / 20, g6 / 8]) / 2"), [Some(0.375), Some(0.25), Some(1.0)]);
    assert_eq!(eval("FILL(p5 + g6, 7)"), some(&[12.0, 7.0, 28.0]));
    assert_eq!(eval("FILL(p5, 0)"), some(&[10.0, 0.0, 20.0]));
    assert_eq!(eval("FILL(p5, g6)"), some(&[10.0, 4.0, 20.0]));
    assert_eq!(eval("FILL(p5, REPEAT)"), some(&[10.0, 10.0, 20.0]));
    assert_eq!(eval("FILL(p5, LINEAR)"), some(&[10.0, 15.0, 20.0]));
    assert_eq!(eval("AVG(FILL(METRICS(), 0))"), some(&[4.0, 4.0 / 3.0, 29.0 / 3.0]));
    assert_eq!(eval("IF(queue > 0, 100, g6)"), some(&[2.0, 4.0, 100.0]));
    assert_eq!(eval("IF(queue > 0, g6)"), [gap, gap, Some(8.0)]);
    assert_eq!(eval("ABS(-3) + CEIL(1.2) + FLOOR(1.8)"), some(&[6.0; 3]));
}

/// A type that has left is 0 from the period on in which it is missing, however far back is looked.
#[test]
fn what_is_missing_in_a_period_counts_as_0_in_it() {
    let (p5, g6) = ([6.0, 5.0, 4.0, 3.0, 8.0], [Some(2.0), Some(4.0), None, None, None]);
    for periods in 1..=5 {
        let series = [("p5".to_owned(), some(&p5)), ("g6".to_owned(), g6.to_vec())];
        let all = Metrics::new(periods, series.into());
        for (text, value) in [("p5 + g6", 8.0), ("AVG(METRICS())", 4.0), ("IF(g6 > 0, 1, p5)", 8.0)]
        {
            let values = Expr::parse(text, &NAMES).expect("an expression").evaluate(&all);
            assert_eq!(values.last(), Some(&Some(value)), "{text} over {periods}");
            assert!(values.iter().all(Option::is_some), "{text} over {periods}");
        }
    }
    let all = metrics(&[("p5", &[Some(1.0), None]), ("g6", &[None, None])]);
    let sum = Expr::parse("p5 + g6", &NAMES).expect("an expression");
    assert_eq!(sum.evaluate(&all), [Some(1.0), None], "nothing at all is no 0");
}

#[test]
fn a_mistake_has_a_place_and_a_sentence() {
    for (text, says) in [
        ("", "a number, a metric or a function is missing before the end, at column 1"),
        ("p5 +", "a number, a metric or a function is missing before the end, at column 5"),
        ("(p5", "`)` is missing before the end, at column 4"),
        ("p5 p5", "an operator or the end is missing before `p`, at column 4"),
        ("h100 / 2", "no metric is called `h100`; there are p5, g6, queue, at column 1"),
        (
            "avg(p5)",
            "there is no function `avg`; there are AVG, MIN, MAX, SUM, METRICS, FILL, IF, ABS, CEIL, FLOOR, at column 1",
        ),
        (
            "AVG(SEARCH('x', 'Average'))",
            "SEARCH is not offered: name each metric under `metrics`, and take them together by METRICS() or METRICS('text'), at column 5",
        ),
        ("MAX(p5, g6)", "MAX takes 1 arguments, not 2, at column 1"),
        ("IF(p5)", "IF takes 2 to 3 arguments, not 1, at column 1"),
        (
            "[p5, g6]",
            "this is several series; a policy needs one, such as AVG([a, b]), at column 1",
        ),
        ("[p5] + [g6]", "both sides are several series; at most one may be, at column 1"),
        ("MAX([[p5]])", "a list in a list has no meaning, at column 6"),
        ("MAX([])", "a list needs at least one series, at column 5"),
        ("METRICS('h')", "no metric's name contains `h`, at column 1"),
        ("METRICS(p5)", "METRICS takes a text in quotes, at column 9"),
        ("'p5", "this text has no closing quote, at column 1"),
        ("'p5'", "a text has a meaning only in METRICS('…'), at column 1"),
        ("1 < 2 < 3", "comparisons do not chain: put one in parentheses before `<`, at column 7"),
        ("1e999", "`1e999` is no number, at column 1"),
        (".", "`.` is no number, at column 1"),
        ("p5 ? 1", "an operator or the end is missing before `?`, at column 4"),
        ("ü", "a number, a metric or a function is missing before `ü`, at column 1"),
        ("METRICS('é') + h100", "no metric's name contains `é`, at column 1"),
        (
            "FILL(p5, 'é') + ?",
            "a number, a metric or a function is missing before `?`, at column 17",
        ),
    ] {
        assert_eq!(refused(text), says, "{text}");
    }
}

#[test]
fn what_grows_or_falls_with_each_metric_is_told_from_the_rest() {
    let names = ["p5", "g6", "kv"];
    for (text, is_monotone) in [
        ("(p5 / 20 + g6 / 8) / 2", true),
        ("-p5 * (g6 - 3)", true),
        ("AVG([p5 / 20, FILL(g6, 1)]) + CEIL(kv)", true),
        ("SUM(METRICS())", true),
        ("SUM(METRICS()) - p5", false),
        ("p5 * (100 - p5)", false),
        ("p5 / g6", false),
        ("ABS(p5 - 10)", false),
        ("p5 ^ 2", false),
        ("IF(p5, 1, 2)", false),
        ("p5 > 3", false),
    ] {
        let expr = Expr::parse(text, &names).expect(text);
        assert_eq!(expr.is_monotone(), is_monotone, "{text}");
    }
}

#[test]
fn what_is_too_deep_or_too_long_is_refused() {
    let nested = |depth: usize| format!("{}1{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Expr::parse(&nested(60), &NAMES).is_ok());
    assert!(refused(&nested(1_000)).contains("nested"));
    assert!(refused(&"-".repeat(2_000)).contains("nested"));
    assert!(refused(&format!("1{}", "^1".repeat(1_000))).contains("nested"));
    assert!(refused(&format!("1{}", "+1".repeat(1_000))).contains("too long"));
    assert!(refused(&" ".repeat(LONGEST + 1)).contains("4096 bytes"));
    assert!(refused(&"é".repeat(LONGEST)).contains("4096 bytes"));
}

#[test]
fn series_of_other_lengths_are_aligned_at_their_end() {
    let all = Metrics::new(2, BTreeMap::from([("p5".to_owned(), some(&[1.0, 2.0, 3.0]))]));
    let p5 = Expr::parse("p5", &NAMES).expect("an expression");
    assert_eq!(p5.evaluate(&all), some(&[2.0, 3.0]));
    let all = Metrics::new(3, BTreeMap::from([("p5".to_owned(), some(&[1.0]))]));
    assert_eq!(p5.evaluate(&all), [None, None, Some(1.0)]);
}

#[test]
fn it_is_shown_with_the_parentheses_that_it_needs() {
    for (text, shown) in [
        ("p5/20+g6/8", "p5 / 20 + g6 / 8"),
        ("(p5 / 20 + g6 / 8) / 2", "(p5 / 20 + g6 / 8) / 2"),
        ("1 - (2 - 3) - 4", "1 - (2 - 3) - 4"),
        ("(2 ^ 3) ^ 2 ^ (-1)", "(2 ^ 3) ^ 2 ^ -1"),
        ("-(-(p5 ^ 2))", "--(p5 ^ 2)"),
        ("(-p5) ^ 2", "-p5 ^ 2"),
        ("(p5 > 1) > (g6 > 2)", "(p5 > 1) > (g6 > 2)"),
        ("MAX([(1 + 2), 1e300])", "MAX([1 + 2, 1e300])"),
    ] {
        let expr = Expr::parse(text, &NAMES).expect(text);
        assert_eq!(expr.to_string(), shown);
        assert_eq!(Expr::parse(shown, &NAMES).expect(shown), expr);
    }
    // What is as long or as deep as may be is still.
    for text in [
        format!("p5{}", " + 1".repeat(250)),
        format!("{}p5", "-".repeat(60)),
        format!("p5{}", " ^ 1".repeat(60)),
    ] {
        let expr = Expr::parse(&text, &NAMES).expect(&text);
        assert_eq!(expr.to_string(), text);
    }
}

fn expressions() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (0_u32..1_000, 0_u32..100).prop_map(|(a, b)| format!("{a}.{b}")),
        proptest::sample::select(&NAMES[..]).prop_map(str::to_owned),
        Just("AVG(METRICS())".to_owned()),
    ];
    leaf.prop_recursive(5, 40, 3, |inner| {
        prop_oneof![
            (inner.clone(), proptest::sample::select(&OPS[..]), inner.clone())
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            inner.clone().prop_map(|a| format!("-{a}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("MAX([{a}, {b}])")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("FILL({a}, {b})")),
            (inner.clone(), inner.clone(), inner)
                .prop_map(|(a, b, c)| format!("IF({a}, {b}, {c})")),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_with_a_place_in_it(text in "\\PC{0,60}") {
        if let Err(error) = Expr::parse(&text, &NAMES) {
            prop_assert!(error.start <= error.end && error.end <= text.len());
            prop_assert!(text.is_char_boundary(error.start) && text.is_char_boundary(error.end));
        }
    }

    #[test]
    fn any_tokens_are_parsed_or_refused(
        tokens in proptest::collection::vec(
            proptest::sample::select(&["p5", "g6", "1", "2.5", "(", ")", "[", "]", ",", "+", "-", "*", "/", "^", "<", "==", "AVG", "IF", "FILL", "METRICS", "REPEAT", "'p'", " "][..]),
            0..30,
        ),
    ) {
        let text = tokens.concat();
        if let Ok(expr) = Expr::parse(&text, &NAMES) {
            prop_assert_eq!(expr.evaluate(&Metrics::new(2, BTreeMap::new())).len(), 2);
        }
    }

    #[test]
    fn what_is_shown_parses_to_the_same(text in expressions()) {
        let expr = Expr::parse(&text, &NAMES).expect("an expression");
        let again = Expr::parse(&expr.to_string(), &NAMES).expect("is shown as one");
        prop_assert_eq!(&again, &expr);
    }

    #[test]
    fn evaluation_gives_a_finite_value_or_a_gap_for_each_period(
        text in expressions(),
        series in proptest::collection::vec(
            proptest::collection::vec(proptest::option::of(-1e9_f64..1e9), 0..6), 3),
        periods in 0_usize..6,
    ) {
        let series = NAMES.iter().map(|name| (*name).to_owned()).zip(series).collect();
        let values = Expr::parse(&text, &NAMES).expect("an expression").evaluate(&Metrics::new(periods, series));
        prop_assert_eq!(values.len(), periods);
        prop_assert!(values.iter().flatten().all(|value| value.is_finite()));
    }
}
