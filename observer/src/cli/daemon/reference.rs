//! The documentation of the keys, made from the same table as everything else: docs/configuration.md and deploy/observer.toml.

use super::keys::Keys;
use super::load::{command, variable};
use crate::settings::{Otlp, Settings};
use std::fmt::Write;

/// One key.
struct Entry {
    heading: String,
    key: String,
    value: String,
    about: String,
    default: Option<toml::Value>,
}

fn entries() -> Vec<Entry> {
    // An endpoint brings the defaults of everything about it.
    let settings = Settings { otlp: Some(Otlp::to(String::new())), ..Settings::default() };
    let mut defaults = toml::Table::try_from(Keys::of(&settings)).unwrap_or_default();
    defaults.remove("otlp-endpoint");
    let command = command();
    let entry = |argument: &clap::Arg| {
        let key = argument.get_long()?.to_owned();
        let names = argument.get_value_names().unwrap_or_default();
        let about = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let choices: Vec<String> = argument
            .get_possible_values()
            .iter()
            .filter(|_| names.first().is_some_and(|name| name != "BOOL"))
            .map(|value| value.get_name().to_owned())
            .collect();
        let choices = if choices.is_empty() { String::new() } else { format!(": {}", choices.join(" or ")) };
        Some(Entry {
            heading: argument.get_help_heading().unwrap_or_default().to_owned(),
            value: names.first().map(ToString::to_string).unwrap_or_default(),
            about: format!("{about}{choices}"),
            default: defaults.get(&key).cloned(),
            key,
        })
    };
    command.get_arguments().filter_map(entry).collect()
}

/// What a key may look like in the file where it has no default.
fn example(key: &str) -> &'static str {
    match key {
        "otlp-endpoint" => "\"http://collector:4317\"",
        "node-name" => "\"node-1\"",
        "kubeconfig" => "\"/etc/observer/kubeconfig\"",
        "otlp-ca-file" => "\"/etc/observer/ca.pem\"",
        "otlp-cert-file" => "\"/etc/observer/cert.pem\"",
        "otlp-key-file" => "\"/etc/observer/key.pem\"",
        "comm" => "[\"java\", \"python*\"]",
        "cgroup" => "[\"/kubepods\"]",
        "container" => "[\"3f2a6b1c\"]",
        "exclude" => "[\"postgres\"]",
        "otlp-headers" => "{ authorization = \"Bearer …\" }",
        "otlp-resource" => "{ \"deployment.environment.name\" = \"production\" }",
        _ => "",
    }
}

/// docs/configuration.md
pub(super) fn markdown() -> String {
    let mut text = String::from(
        "<!-- Made by `cargo xtask configuration` from observer/src/cli/daemon/keys.rs; do not edit. -->\n\
         # Configuration of `observer daemon`\n\n\
         Every key can stand in the file (`--config FILE` or `OBSERVER_CONFIG`, TOML), in an environment variable, or as a flag. A flag beats the environment, the \
         environment beats the file, the file beats the default. A list or table replaces the one it beats as a whole. An empty variable is none.\n\n\
         `observer daemon --check` says what is wrong, or prints the effective settings (without secrets). A wrong or unknown key is refused with exit status 2.\n\n\
         `SIGHUP` loads the file again; when it is wrong the old settings stay, and the log says why. Keys marked \u{21bb} change at once; the others at the next start.\n",
    );
    let mut heading = String::new();
    for entry in entries() {
        if entry.heading != heading {
            heading.clone_from(&entry.heading);
            let _ = write!(
                text,
                "\n## {heading}\n\n| key | flag | variable | default | meaning |\n|---|---|---|---|---|\n"
            );
        }
        let Entry { key, value, about, default, .. } = entry;
        let default = default.map_or("–".to_owned(), |default| format!("`{default}`"));
        let reload = if super::keys::needs_restart(&key) { "" } else { " \u{21bb}" };
        let about = about.replace('|', "\\|");
        // `--stdout` alone is allowed, so a value needs the sign.
        let sign = if value == "BOOL" { '=' } else { ' ' };
        let value = value.replace('|', "\\|");
        let _ =
            writeln!(text, "| `{key}`{reload} | `--{key}{sign}{value}` | `{}` | {default} | {about} |", variable(&key));
    }
    text.push_str(
        "\n### Lists, tables, silences\n\n\
         As a flag, a list is given by repeating the flag or with commas (`--exclude postgres,redis`); in a variable with commas. `otlp-headers` and `otlp-resource` are \
         `NAME=VALUE`, percent-encoded where a value has a comma (`%2C`). Silences are separated by `;` in a variable:\n\n\
         ```\n--silence kind=lock_wait,exe=/usr/bin/foo,up-to=1h --silence labels.app=batch\nOBSERVER_SILENCE='kind=lock_wait,exe=/usr/bin/foo,up-to=1h;labels.app=batch'\n```\n\n\
         ```toml\n[[silence]]\nkind = \"lock_wait\"\nexe = \"/usr/bin/foo\"\nup-to = \"1h\"\n\n[[silence]]\nlabels = { app = \"batch\" }\n```\n\n\
         A finding is kept quiet if all of what is given matches: `kind` the kind of finding, `exe` path or name of the executable (`*` matches anything), `cgroup` a part of the cgroup path, \
         `labels` labels of the pod (known from the API server only, see `node-name`), `up-to` its age. Silenced changes are counted in `observer.findings.silenced.count`. Silences keep findings out of stdout and of what is sent as \
         events; `observer.findings.open` counts them all the same: quiet an alert on it in Alertmanager.\n\n\
         The standard variables fill the OpenTelemetry keys that observer's own leave open: `OTEL_EXPORTER_OTLP_ENDPOINT`, `…_PROTOCOL`, `…_COMPRESSION`, `…_TIMEOUT`, `…_HEADERS`, \
         `…_CERTIFICATE`, `…_CLIENT_CERTIFICATE`, `…_CLIENT_KEY` (also as `OTEL_EXPORTER_OTLP_LOGS_…` and `OTEL_EXPORTER_OTLP_METRICS_…`), `OTEL_LOGS_EXPORTER`, `OTEL_METRICS_EXPORTER`, `OTEL_RESOURCE_ATTRIBUTES`, \
         `OTEL_SERVICE_NAME`, `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_SDK_DISABLED`.\n",
    );
    text
}

/// deploy/observer.toml
pub(super) fn example_file() -> String {
    let mut text = String::from(
        "# Settings of `observer daemon --config FILE`: every key, with its default or (where there is none) an example.\n\
         # Made by `cargo xtask configuration` from observer/src/cli/daemon/keys.rs; meaning and precedence: docs/configuration.md.\n",
    );
    let mut heading = String::new();
    for entry in entries().into_iter().filter(|entry| entry.key != "silence") {
        if entry.heading != heading {
            heading.clone_from(&entry.heading);
            let _ = write!(text, "\n# --- {heading}\n");
        }
        let Entry { key, about, default, .. } = entry;
        let value = match (example(&key), default) {
            ("", Some(default)) => default.to_string(),
            (example, _) => example.to_owned(),
        };
        let _ = write!(text, "\n# {about}\n#{key} = {value}\n");
    }
    text.push_str(
        "\n# --- Silences\n\n\
         # Findings that are kept quiet: all that is given must match; up-to: until they are that old\n\
         #[[silence]]\n#kind = \"lock_wait\"\n#exe = \"/usr/bin/foo\"\n#cgroup = \"/system.slice\"\n#up-to = \"1h\"\n#labels = { app = \"batch\" }\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        std::fs::read_to_string(&path).unwrap_or_default()
    }

    #[test]
    fn the_documentation_is_not_stale() {
        assert!(file("docs/configuration.md") == markdown(), "stale: run `cargo xtask configuration`");
        assert!(file("deploy/observer.toml") == example_file(), "stale: run `cargo xtask configuration`");
    }

    #[test]
    fn every_key_is_documented() {
        for entry in entries() {
            assert!(entry.about.len() > 10 && !entry.heading.is_empty() && !entry.value.is_empty(), "{}", entry.key);
            assert!(entry.default.is_some() || !example(&entry.key).is_empty(), "{} has neither", entry.key);
        }
    }
}
