//! The page in a real browser: what a click opens, and whether it can be read on light and dark, wide and narrow screens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::KeyValue;
use serde_json::Value;
use throughline_testkit::endpoint;
use throughline_waterfall::{Attributes, Kind, Link, Outcome, Span, html, rows};

/// Measures the page as it lies, and leaves what it found in its title.
const PROBE: &str = r#"<script>
const rgb = (text) => text.match(/[\d.]+/g).slice(0, 3).map(Number);
const light = (text) => {
  const [r, g, b] = rgb(text).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
const page = getComputedStyle(document.body).backgroundColor;
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (!color.endsWith(", 0)")) return color;
  }
  return page;
};
const seen = [...document.querySelectorAll("h1, dt, dd, b, small, .time, .axis i, .legend span, a, button")];
const read = seen.filter((element) => element.getClientRects().length > 0);
const worst = read.map((element) => [contrast(getComputedStyle(element).color, behind(element)), element.textContent]);
const outside = [...document.querySelectorAll("summary .lane i")].filter((bar) => {
  const [inner, outer] = [bar.getBoundingClientRect(), bar.parentElement.getBoundingClientRect()];
  return inner.left < outer.left - 1 || inner.right > outer.right + 3 || inner.width < 1;
});
document.title = JSON.stringify({
  dark: light(page) < 0.5,
  contrast: worst.sort((a, b) => a[0] - b[0])[0],
  read: read.length,
  wider: document.documentElement.scrollWidth - innerWidth,
  outside: outside.length,
  open: [...document.querySelectorAll("details[open]")].map((row) => row.id),
  button: document.getElementById("all").hidden ? "hidden" : document.getElementById("all").textContent,
});
</script></body>"#;

fn span(id: &str, parent: Option<&str>, kind: Kind, (from, to): (u64, u64)) -> Span {
    let at = |millis| UNIX_EPOCH + Duration::from_millis(1_000_000 + millis);
    Span {
        trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
        span_id: id.into(),
        parent_span_id: parent.map(Into::into),
        name: format!("campaign.sync_report of {id}"),
        kind,
        start: at(from),
        end: at(to),
        status: Outcome::Unset,
        attributes: Attributes::default(),
        links: Vec::new(),
    }
}

fn page() -> String {
    let mut spans = vec![
        span("1", None, Kind::Server, (0, 4)),
        span("2", Some("1"), Kind::Producer, (1, 1)),
        span("3", Some("2"), Kind::Internal, (1, 300)),
        span("4", Some("2"), Kind::Consumer, (300, 400)),
        span("5", Some("4"), Kind::Client, (399, 400)),
    ];
    let long = "unbroken_".repeat(60);
    for span in &mut spans {
        let delay = ("throughline.queue.delay", 0.299, Kind::Internal);
        let retry = ("throughline.retry.delay", 0.2, Kind::Client);
        let of_kind = [delay, retry].into_iter().filter(|(_, _, kind)| *kind == span.kind);
        let mut attributes: Vec<_> = of_kind.map(|(name, value, _)| KeyValue::new(name, value)).collect();
        attributes.push(KeyValue::new("db.query.text", long.clone()));
        span.attributes = attributes.iter().collect();
        if span.kind == Kind::Consumer {
            span.status = Outcome::Error { message: format!("ads-api answered 503: {long}") };
            let link = ("0af7651916cd43dd8448eb211c80319c".to_owned(), "2".to_owned());
            span.links = vec![Link { trace_id: link.0, span_id: link.1, attributes: Attributes::default() }];
        }
    }
    html::page("A trace", &[("Via", "memory:demo?queue=q".into())], &rows(&spans))
}

/// What the probe found, opened as this link leads to it.
fn look(browser: &str, folder: &Path, link: &str, size: &str, dark: bool) -> Value {
    let profile = folder.join("profile");
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
        .args(["--virtual-time-budget=2000", "--timeout=60000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={size}"))
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
        .args(["--dump-dom", &format!("file://{}/page.html{link}", folder.display())])
        .output()
        .expect("the browser starts");
    let dom = String::from_utf8_lossy(&output.stdout);
    let title = dom.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    let (title, _) = title.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str(&title.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")).expect(title)
}

#[test]
fn the_page_can_be_read_on_any_screen_and_a_link_opens_what_it_leads_to() {
    let test = "the_page_can_be_read_on_any_screen_and_a_link_opens_what_it_leads_to";
    let Some(browser) = endpoint::need("THROUGHLINE_CHROMIUM", "a Chromium", test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let page = page();
    let file = folder.path().join("page.html");
    for (size, dark, opened) in [
        ("1400,900", false, false),
        ("1400,900", true, true),
        ("600,900", false, true),
        ("600,900", true, false),
    ] {
        // All open, so that all can be measured; or as it comes.
        let text = if opened { page.replace("<details id", "<details open id") } else { page.clone() };
        std::fs::write(&file, text.replace("</body>", PROBE)).unwrap();
        let seen = look(&browser, folder.path(), "", size, dark);
        let at = format!("{size}, dark {dark}, opened {opened}: {seen}");
        assert_eq!(seen["dark"], dark, "{at}");
        // The Web Content Accessibility Guidelines ask for 4.5 (2.2, success criterion 1.4.3).
        assert!(seen["contrast"][0].as_f64().unwrap() >= 4.5, "{at}");
        assert!(seen["read"].as_u64().unwrap() > 20, "{at}");
        assert!(seen["wider"].as_i64().unwrap() <= 0, "nothing is cut off: {at}");
        assert_eq!(seen["outside"], 0, "each bar is in its lane: {at}");
        let (open, button) = if opened { (5, "Close all") } else { (0, "Open all") };
        assert_eq!((seen["open"].as_array().unwrap().len(), &seen["button"]), (open, &button.into()), "{at}");
    }

    std::fs::write(&file, page.replace("</body>", PROBE)).unwrap();
    let row = "0af7651916cd43dd8448eb211c80319c-4";
    let seen = look(&browser, folder.path(), &format!("#{row}"), "1400,900", false);
    assert_eq!(seen["open"], serde_json::json!([row]), "{seen}");
    assert_eq!(seen["button"], "Close all", "{seen}");
}
