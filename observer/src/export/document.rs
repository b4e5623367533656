//! `docs/signals.md`: the page that lists every signal, made from the tables of [`super::signals`].

use super::prometheus::{PROCESS_LABELS, name};
use super::signals::{ATTRIBUTES, EVENTS, Kind, METRICS, Metric};
use std::fmt::Write;

const HEAD: &str = "\
# Signals

What `observer daemon` tells other systems. Made from `observer/src/export/signals.rs` by `cargo xtask signals`: change it there.
Names and meanings are stable; more may come.

Findings are OpenTelemetry log records (`event_name` as below, the explanation as body, severity ERROR, WARN or INFO) and lines of JSON on
stdout (`observer.finding/v1`, see [schema.md](schema.md)). Metrics are OpenTelemetry metrics and a Prometheus page.
";

const PROMETHEUS: &str = "\
In Prometheus the same metric has `_` for `.`, the unit spelt out (`_seconds`, `_bytes`) and `_total` for counters, without `.count`. Histograms have
`_bucket`, `_sum` and `_count`. `observer_build_info` (label `version`) is always 1.
";

const BY_PROCESS: &str = "\
Metrics named `observer.process.…` or `observer.debts.…` are told apart by process. In OpenTelemetry the process is the resource; in Prometheus it has the labels";

const PROFILES: &str = "
## Profiles

Experimental, off unless `otlp-profiles` is set: this part of OTLP has the status *development* and changes; names here may change with it. Over HTTP the path is
`/v1development/profiles`.

With every sample of the metrics goes one profile per kind of process, type `off_cpu`, unit `nanoseconds`. A sample is the user stack of threads of one process that are blocked now, its
value the time they were blocked since the last profile, all together: at most the interval for each thread. Only stacks that observer has for its findings are in it; none is walked
for a profile. At most 500 stacks go into one profile, those blocked longest; the others are counted in `observer.export.lost.count` (reason `too_many_stacks`).
Addresses of locations are those of the file (ELF virtual addresses, what `addr2line -e` takes), so mappings have a name and a build id and no range; code without a file has the address
in the process. A receiver that knows no profiles (`http_404`, `grpc_unimplemented`, …) is not asked again for an hour.
";

const PLACES: &str = "\
No metric has a process id. Processes with the same labels are added up, those without metrics of their own are `executable=\"(others)\"`, an executable
that could not be read is `(unknown)`. A metric has at most 400 series; what is beyond is added up in one with `(others)` for every label. Values
are cut after 128 characters.

`/metrics` serves text 0.0.4, or OpenMetrics 1.0 if the `Accept` header prefers it: the numbers of the last census, so at most one interval old. If no census
comes any more it goes on serving the last numbers: watch `observer_census_total`, or `/healthz`.

| path | says |
|---|---|
| `/metrics` | 200; 503 before the first census |
| `/healthz` | 200 while the last census is at most 10 s or five intervals old, whichever is more (two minutes for the first one: loading may be slow); else 503 with the reason |
| `/readyz` | 200 after two censuses, with the probes attached or given up; the body has the rung of each probe, or why there is none |
";

/// The page.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    table(&mut out, "Events", &["event", "says"], EVENTS.iter().map(|(name, about)| [code(name), (*about).to_owned()]));
    table(
        &mut out,
        "Metrics",
        &["metric", "Prometheus", "kind", "unit", "attributes", "says"],
        METRICS.iter().map(|metric| {
            let attributes: Vec<String> = metric.attributes.iter().map(|name| code(name)).collect();
            [
                code(metric.name),
                code(&name(metric)),
                kind(metric).to_owned(),
                code(metric.unit),
                attributes.join(", "),
                metric.about.to_owned(),
            ]
        }),
    );
    let labels = PROCESS_LABELS.map(code).join(", ");
    let _ = write!(out, "\n{PROMETHEUS}\n{BY_PROCESS} {labels}.\n{PLACES}");
    out.push_str(PROFILES);
    for (title, on) in [
        ("Attributes of resources", "resource"),
        ("Attributes of events", "event"),
        ("Attributes of metrics", "metric"),
        ("Attributes of profiles", "profile"),
    ] {
        let rows = ATTRIBUTES.iter().filter(|attribute| attribute.on == on);
        table(
            &mut out,
            title,
            &["attribute", "says"],
            rows.map(|attribute| [code(attribute.name), attribute.about.to_owned()]),
        );
    }
    out
}

fn kind(metric: &Metric) -> &'static str {
    match metric.kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
        Kind::Histogram => "histogram",
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn table<const N: usize>(out: &mut String, title: &str, head: &[&str; N], rows: impl Iterator<Item = [String; N]>) {
    let _ = writeln!(out, "\n## {title}\n\n| {} |\n|{}", head.join(" | "), "---|".repeat(N));
    for row in rows {
        // A bar within a cell would begin another.
        let _ = writeln!(out, "| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_page_in_docs_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/signals.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == page(), "docs/signals.md is stale: run `cargo xtask signals`");
    }

    #[test]
    fn every_attribute_of_a_metric_is_explained_once_and_none_in_vain() {
        let used: BTreeSet<&str> = METRICS.iter().flat_map(|metric| metric.attributes).copied().collect();
        let explained: Vec<&str> =
            ATTRIBUTES.iter().filter(|attribute| attribute.on == "metric").map(|attribute| attribute.name).collect();
        assert_eq!(explained.iter().copied().collect::<BTreeSet<_>>(), used);
        assert_eq!(explained.len(), used.len());
    }

    #[test]
    fn every_attribute_has_a_place_on_the_page() {
        let page = page();
        for attribute in ATTRIBUTES {
            assert!(page.contains(&format!("| `{}` | {} |", attribute.name, attribute.about)), "{}", attribute.name);
        }
    }
}
