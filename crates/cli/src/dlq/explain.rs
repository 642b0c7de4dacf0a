//! `dlq explain`: dead letters by what failed.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::json;
use throughline::Timestamp;
use throughline::driver::Delivery;

use super::{error, history, last, summary};
use crate::failure::Failure;
use crate::message::{json_line, visible_line};
use crate::output::{BOLD, Paint, RED};

/// Dead letters of one dependency and one class of error.
struct Group<'a> {
    letters: Vec<&'a Delivery>,
    types: BTreeMap<&'a str, usize>,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

/// The groups, the largest first.
fn groups(letters: &[Delivery]) -> Vec<((Option<String>, String), Group<'_>)> {
    let mut groups: BTreeMap<_, Group<'_>> = BTreeMap::new();
    for letter in letters {
        let dependency = last(letter).and_then(|last| last.dependency.clone());
        let group = groups.entry((dependency, error(letter))).or_insert_with(|| Group {
            letters: Vec::new(),
            types: BTreeMap::new(),
            first: None,
            last: None,
        });
        *group.types.entry(letter.envelope.message_type.as_deref().unwrap_or("(no type)")).or_default() += 1;
        if let Some(at) = last(letter).map(|last| last.at) {
            group.first = Some(group.first.map_or(at, |first| first.min(at)));
            group.last = Some(group.last.map_or(at, |last| last.max(at)));
        }
        group.letters.push(letter);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.letters.len()));
    groups
}

pub(super) fn render(letters: &[Delivery], json: bool, paint: Paint) -> Result<String, Failure> {
    let mut text = String::new();
    for ((dependency, error), Group { letters, types, first, last }) in groups(letters) {
        // The latest is most like what comes next.
        let example = letters.iter().max_by_key(|letter| super::last(letter).map(|last| last.at)).copied();
        if json {
            text.push_str(&json_line(&json!({
                "dependency": dependency,
                "error": error,
                "count": letters.len(),
                "types": types,
                "first": first.map(|at| at.to_string()),
                "last": last.map(|at| at.to_string()),
                "example": example.map(summary),
            }))?);
            continue;
        }
        let of =
            dependency.map_or_else(|| "no dependency named".to_owned(), |name| format!("dependency {name}"));
        let title = format!("{} × {error}", letters.len());
        let _ = writeln!(
            text,
            "{}  {}",
            paint.apply(RED, visible_line(&title)),
            paint.apply(BOLD, visible_line(&of))
        );
        let types: Vec<_> = types.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        let _ = writeln!(text, "  types: {}", visible_line(&types.join(", ")));
        if let (Some(first), Some(last)) = (first, last) {
            let _ = writeln!(text, "  first {first}, last {last}");
        }
        if let Some(example) = example {
            let _ = writeln!(text, "  for example {}:", visible_line(&example.envelope.id));
            for line in history(example, paint).lines() {
                let _ = writeln!(text, "  {line}");
            }
        }
    }
    if !json && text.is_empty() {
        text.push_str("no dead letters\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use throughline::driver::Token;
    use throughline::{Envelope, Failure as Attempt, History};

    use super::*;

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn letter(message_type: &str, failure: Option<Attempt>) -> Delivery {
        let envelope =
            Envelope::builder(message_type).header("traceparent", TRACEPARENT).payload("hunter2").build();
        let mut letter = Delivery::new(Arc::new(envelope), Token { epoch: 0, tag: 0 });
        letter.failed_attempts = 1;
        letter.history = failure.map(|failure| {
            let mut history = History::default();
            history.push(failure);
            Arc::new(history)
        });
        letter
    }

    #[test]
    fn groups_by_what_failed_the_largest_first_and_tells_one_story_each() {
        let failed =
            |text: &str| Some(Attempt::new("http_503").dependency("ads-api").message(text).worker("w1"));
        let letters = [
            letter("a", None),
            letter("a", failed("one")),
            letter("b", failed("two")),
            letter("b", Some(Attempt::new("http_503").dependency("database"))),
        ];
        let text = render(&letters, false, Paint::OFF).unwrap();
        assert!(
            text.starts_with("2 × http_503  dependency ads-api\n  types: a (1), b (1)\n  first "),
            "{text}"
        );
        assert!(text.contains("trace 0af7651916cd43dd8448eb211c80319c"), "{text}");
        assert!(text.contains("on w1: http_503 (ads-api): "), "{text}");
        assert!(text.contains("1 × unknown  no dependency named"), "{text}");
        assert!(!text.contains("hunter2"), "payloads are for `show`");
        let json = render(&letters, true, Paint::OFF).unwrap();
        let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!((&first["dependency"], &first["count"]), (&"ads-api".into(), &2.into()));
        assert_eq!(first["example"]["history"][0]["worker"], "w1");
        assert_eq!(render(&[], false, Paint::OFF).unwrap(), "no dead letters\n");
    }
}
