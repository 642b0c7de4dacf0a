//! What `docker-compose.yml` must be, checked without Docker.

use saphyr::{LoadableYamlNode, Yaml};

/// Every problem of a Compose file's text; each says what to do.
pub(crate) fn problems(text: &str) -> Vec<String> {
    let documents = match Yaml::load_from_str(text) {
        Ok(documents) => documents,
        Err(error) => return vec![format!("it is not YAML: {error}")],
    };
    let services = documents.first().and_then(|document| document.as_mapping_get("services"));
    let Some(services) = services.and_then(Yaml::as_mapping).filter(|services| !services.is_empty()) else {
        return vec!["it has no services: list them under `services:`".to_owned()];
    };
    let mut problems = Vec::new();
    for (name, service) in services {
        let name = name.as_str().unwrap_or("?");
        problems.extend(image(service).map(|problem| format!("service {name}: {problem}")));
        let Some(ports) = service.as_mapping_get("ports") else { continue };
        match ports.as_sequence() {
            Some(ports) => {
                problems.extend(
                    ports.iter().filter_map(port).map(|problem| format!("service {name}: {problem}")),
                );
            }
            None => problems.push(format!("service {name}: `ports` is not a list")),
        }
    }
    problems
}

fn image(service: &Yaml<'_>) -> Option<String> {
    let Some(image) = service.as_mapping_get("image").and_then(Yaml::as_str) else {
        return Some("no `image`: name one, with a tag".to_owned());
    };
    // A colon before the last slash is the registry's port; what follows `@` is a digest.
    let tag = image
        .split('@')
        .next()
        .and_then(|image| image.rsplit('/').next())
        .and_then(|name| name.split_once(':'));
    match tag {
        None | Some((_, "")) => Some(format!("the image {image} has no tag: pin a version")),
        Some((_, tag)) if tag.starts_with("latest") || !tag.contains(|c: char| c.is_ascii_digit()) => {
            Some(format!("the image {image} is not pinned: name a version, not `{tag}`"))
        }
        Some(_) => None,
    }
}

fn port(port: &Yaml<'_>) -> Option<String> {
    let on_loopback = match port.as_mapping_get("host_ip") {
        Some(address) => address.as_str() == Some("127.0.0.1"),
        None => port.as_str().is_some_and(|text| text.starts_with("127.0.0.1:")),
    };
    let shown = port.as_str().map_or_else(|| format!("{port:?}"), str::to_owned);
    (!on_loopback).then(|| format!("the port {shown} is open to the network: begin it with `127.0.0.1:`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(body: &str) -> Vec<String> {
        problems(&format!("services:\n  broker:\n{body}"))
    }

    #[test]
    fn what_is_pinned_and_on_loopback_is_fine() {
        for body in [
            "    image: rabbitmq:4.2.9-management\n",
            "    image: r.example:5000/a/rabbitmq:4.2@sha256:00\n    ports: [\"127.0.0.1:${PORT:-5672}:5672\"]\n",
            "    image: rabbitmq:4.2\n    ports:\n      - {host_ip: 127.0.0.1, target: 5672, published: 5672}\n",
        ] {
            assert_eq!(service(body), Vec::<String>::new(), "{body}");
        }
    }

    #[test]
    fn every_problem_is_named() {
        for (body, expected) in [
            ("    build: .\n", "no `image`"),
            ("    image: rabbitmq\n", "has no tag"),
            ("    image: r.example:5000/rabbitmq\n", "has no tag"),
            ("    image: rabbitmq:latest\n", "is not pinned"),
            ("    image: rabbitmq:management\n", "is not pinned"),
            ("    image: rabbitmq:4.2\n    ports: [\"5672:5672\"]\n", "open to the network"),
            ("    image: rabbitmq:4.2\n    ports: [5672]\n", "open to the network"),
            ("    image: rabbitmq:4.2\n    ports: [\"0.0.0.0:1:1\"]\n", "open to the network"),
            ("    image: rabbitmq:4.2\n    ports: [{target: 5672}]\n", "open to the network"),
            ("    image: rabbitmq:4.2\n    ports: 5672\n", "not a list"),
        ] {
            let found = service(body);
            assert!(found.len() == 1 && found[0].contains(expected), "{body}: {found:?}");
        }
        assert!(problems("services: [unclosed")[0].contains("not YAML"));
        assert!(problems("")[0].contains("no services"));
        assert_eq!(service("    image: a\n    ports: [\"1:1\", \"2:2\"]\n").len(), 3);
    }
}
