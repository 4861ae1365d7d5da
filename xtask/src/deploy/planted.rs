//! A test of the rules: each fault below is planted into what was read, and has to be noticed.

use anyhow::{Result, bail};
use serde_json::Value;

use super::rules;

/// Where, and what would stand there.
const PLANTED: [(&str, &str); 49] = [
    ("/dockerfile/image/USER/0/0", r#""nonroot""#),
    ("/dockerfile/image/USER/0/0", r#""0:0""#),
    (
        "/dockerfile/image/FROM/0/0",
        r#""gcr.io/distroless/cc-debian12:latest""#,
    ),
    ("/dockerfile/image/RUN", r#"[["true"]]"#),
    ("/dockerfile/image/ADD", r#"[["https://example.com/a", "/"]]"#),
    ("/dockerfile/image/ENV", r#"[["EVERGRANT_VAULT__KEY=AAAA"]]"#),
    ("/dockerfile/image/COPY/0", r#"["--from=build", "/out", "/"]"#),
    ("/dockerfile/image/STOPSIGNAL/0/0", r#""SIGKILL""#),
    ("/dockerfile/image/EXPOSE/0/0", r#""8080""#),
    ("/dockerfile/build/FROM/0/0", r#""rust:1.60-slim-bookworm""#),
    ("/package/version", r#""9.9.9""#),
    ("/dockerignore", r#"["target"]"#),
    ("/compose/services/evergrant/read_only", "false"),
    ("/compose/services/postgres/user", r#""0:0""#),
    ("/compose/services/postgres/cap_drop", "[]"),
    ("/compose/services/migrate/security_opt", "[]"),
    (
        "/compose/services/postgres/environment",
        r#"{"POSTGRES_PASSWORD": "hunter2"}"#,
    ),
    ("/compose/services/evergrant/ports/0", r#""8484:8484""#),
    (
        "/compose/services/evergrant/depends_on/migrate/condition",
        r#""service_started""#,
    ),
    ("/compose/services/evergrant/stop_grace_period", r#""60s""#),
    ("/compose/services/evergrant/volumes", "[]"),
    ("/compose/services/evergrant/secrets", r#"["vault-key"]"#),
    ("/kubernetes/files/forgotten.yaml", "[]"),
    (
        "/kubernetes/manifests/Kustomization/images/0/newTag",
        r#""latest""#,
    ),
    (
        "/kubernetes/manifests/Kustomization/configMapGenerator/0/name",
        r#""other""#,
    ),
    (
        "/kubernetes/manifests/Secret.evergrant/stringData/vault-key",
        r#""AAAA""#,
    ),
    (
        "/kubernetes/manifests/Secret.evergrant/stringData/other",
        r#""<other>""#,
    ),
    ("/kubernetes/manifests/Service.evergrant/spec/selector", "{}"),
    (
        "/kubernetes/manifests/Service.evergrant/spec/ports/0/targetPort",
        r#""https""#,
    ),
    (
        "/kubernetes/manifests/Service.evergrant-pods/spec/clusterIP",
        "null",
    ),
    (
        "/kubernetes/manifests/PodDisruptionBudget.evergrant/spec/maxUnavailable",
        "3",
    ),
    (
        "/kubernetes/manifests/NetworkPolicy.evergrant/spec/podSelector",
        "{}",
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/volumeClaimTemplates",
        "[]",
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/persistentVolumeClaimRetentionPolicy/whenScaled",
        r#""Delete""#,
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/terminationGracePeriodSeconds",
        "70",
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/securityContext/runAsUser",
        "0",
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/securityContext/fsGroupChangePolicy",
        r#""Always""#,
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/enableServiceLinks",
        "true",
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/volumes/1/secret/defaultMode",
        "420",
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/containers/0/livenessProbe/httpGet/path",
        r#""/readyz""#,
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/containers/0/ports/0/containerPort",
        "8080",
    ),
    (
        "/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/initContainers/0/securityContext/readOnlyRootFilesystem",
        "false",
    ),
    ("/kubernetes/rendered/Secret", "[{}]"),
    ("/kubernetes/rendered/ConfigMap/0/metadata/name", r#""evergrant""#),
    ("/kubernetes/rendered/ConfigMap/0/data/evergrant.toml", r#""""#),
    ("/unit/Service/TimeoutStopSec", r#"["30s"]"#),
    ("/unit/Service/ProcSubset", r#"["pid"]"#),
    (
        "/unit/Service/LoadCredential",
        r#"["vault-key:/etc/evergrant/vault-key"]"#,
    ),
    ("/configuration/kubernetes/lifeboat/dir", r#""/tmp/lifeboat""#),
];

pub(super) fn all_are_noticed(shipped: &Value) -> Result<()> {
    let was_left_out = |place: &str| {
        let rendered = "/kubernetes/rendered";
        place.starts_with(rendered) && shipped.pointer(rendered).is_none_or(Value::is_null)
    };
    let (mut noticed, mut missed) = (0, Vec::new());
    for (place, fault) in PLANTED {
        if was_left_out(place) {
            continue;
        }
        let mut faulty = shipped.clone();
        let (folder, key) = place.rsplit_once('/').unwrap_or_default();
        let planted = serde_json::from_str(fault)?;
        match faulty.pointer_mut(folder) {
            Some(Value::Object(object)) => drop(object.insert(key.to_owned(), planted)),
            Some(Value::Array(array)) => array[key.parse::<usize>()?] = planted,
            _ => bail!("there is no {folder} to plant a fault in"),
        }
        if rules::broken(&faulty).is_empty() {
            missed.push(format!("{place}: {fault}"));
        } else {
            noticed += 1;
        }
    }
    if !missed.is_empty() {
        bail!("faults that no rule notices:\n{}", missed.join("\n"));
    }
    println!("{noticed} faults were planted and noticed");
    Ok(())
}
