//! The Kubernetes manifests.

use super::{Rules, STATE, entries, list, texts};

impl Rules<'_> {
    pub(super) fn kubernetes(&mut self) {
        self.pods();
        self.containers();
        self.service_container();
        self.around_the_pods();
        self.kustomization();
        self.rendered();
    }

    fn pods(&mut self) {
        let set = &self.manifest("StatefulSet.evergrant")["spec"];
        let pod = &set["template"]["spec"];
        let (user, group) = self
            .text("/dockerfile/image/USER/0/0")
            .split_once(':')
            .unwrap_or_default();
        let id = |id: &str| id.parse::<u32>().unwrap_or(0);
        let security = &pod["securityContext"];
        self.is("pods: runAsNonRoot", &security["runAsNonRoot"], true);
        self.is("pods: runAsUser", &security["runAsUser"], id(user));
        self.is("pods: runAsGroup", &security["runAsGroup"], id(group));
        self.is("pods: fsGroup", &security["fsGroup"], id(group));
        self.is(
            "pods: fsGroupChangePolicy",
            &security["fsGroupChangePolicy"],
            "OnRootMismatch",
        );
        self.is(
            "pods: seccompProfile",
            &security["seccompProfile"]["type"],
            "RuntimeDefault",
        );
        self.is("pods: enableServiceLinks", &pod["enableServiceLinks"], false);
        self.is(
            "pods: automountServiceAccountToken",
            &pod["automountServiceAccountToken"],
            false,
        );
        self.is("pods: three of them", &set["replicas"], 3);
        let volumes = list(&pod["volumes"]);
        let secret = volumes
            .iter()
            .map(|volume| &volume["secret"])
            .find(|secret| !secret.is_null());
        // 0440, in which nobody else has a share; more is refused for keys.
        self.holds(
            secret
                .is_some_and(|secret| secret["defaultMode"] == 0o440 && secret["secretName"] == "evergrant"),
            "pods: the secret is mounted for the group and nobody else",
        );
        let kept =
            entries(&set["persistentVolumeClaimRetentionPolicy"]).all(|(_, policy)| policy == "Retain");
        self.holds(kept, "pods: volumes are never deleted with the pods");
    }

    fn containers(&mut self) {
        let set = &self.manifest("StatefulSet.evergrant")["spec"];
        let pod = &set["template"]["spec"];
        let claim = &set["volumeClaimTemplates"][0]["metadata"]["name"];
        let both = list(&pod["containers"])
            .into_iter()
            .chain(list(&pod["initContainers"]));
        for container in both {
            let security = &container["securityContext"];
            self.is(
                "pods: readOnlyRootFilesystem",
                &security["readOnlyRootFilesystem"],
                true,
            );
            self.is(
                "pods: allowPrivilegeEscalation",
                &security["allowPrivilegeEscalation"],
                false,
            );
            self.is(
                "pods: capabilities",
                &security["capabilities"]["drop"],
                vec!["ALL"],
            );
            self.holds(
                !container["resources"]["limits"]["memory"].is_null(),
                "pods: memory has a limit",
            );
            self.holds(
                !container["resources"]["requests"]["cpu"].is_null(),
                "pods: processors are asked for",
            );
            self.is(
                "pods: image, named by the kustomization",
                &container["image"],
                "evergrant",
            );
            let mounts = list(&container["volumeMounts"]);
            let mount = |path: &str| {
                mounts
                    .iter()
                    .find(|mount| mount["mountPath"] == path)
                    .map(|mount| &mount["name"])
            };
            self.holds(
                !claim.is_null() && mount(STATE) == Some(claim),
                "pods: the state is on a volume of the pod's own that outlives it",
            );
            self.holds(
                mount("/etc/evergrant").is_some() && mount("/run/secrets").is_some(),
                "pods: configuration and secrets are mounted",
            );
        }
    }

    fn service_container(&mut self) {
        let pod = self.at("/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec");
        let container = &pod["containers"][0];
        let port = self.text("/loaded/kubernetes/port");
        self.is(
            "pods: containerPort",
            &container["ports"][0]["containerPort"],
            port.parse::<u16>().unwrap_or(0),
        );
        for (probe, path) in [
            ("startupProbe", "/healthz"),
            ("livenessProbe", "/healthz"),
            ("readinessProbe", "/readyz"),
        ] {
            let asks = &container[probe]["httpGet"];
            self.is(&format!("pods: {probe}"), &asks["path"], path);
            self.is(
                &format!("pods: {probe}: port"),
                &asks["port"],
                container["ports"][0]["name"].as_str().unwrap_or("?"),
            );
            self.holds(
                !self.at("/api")[path]["get"].is_null(),
                "pods: the service answers its probes",
            );
        }
        self.is("pods: serve", &container["args"][0], "serve");
        self.is(
            "pods: migrate comes first",
            &pod["initContainers"][0]["args"][0],
            "migrate",
        );
        let waits = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
        let stops_in = pod["terminationGracePeriodSeconds"].as_u64();
        let needed = waits
            .zip(self.seconds_to_stop("kubernetes"))
            .map(|(waits, needed)| waits + needed);
        self.holds(
            needed.is_some() && stops_in >= needed,
            "pods: terminationGracePeriodSeconds is longer than preStop, draining and saving take",
        );
    }

    fn around_the_pods(&mut self) {
        let set = &self.manifest("StatefulSet.evergrant")["spec"];
        let labels = &set["template"]["metadata"]["labels"];
        let ports = &set["template"]["spec"]["containers"][0]["ports"][0];
        let disruption = &self.manifest("PodDisruptionBudget.evergrant")["spec"];
        let network = &self.manifest("NetworkPolicy.evergrant")["spec"];
        for (what, selector) in [
            ("StatefulSet", &set["selector"]["matchLabels"]),
            (
                "Service evergrant",
                &self.manifest("Service.evergrant")["spec"]["selector"],
            ),
            (
                "Service evergrant-pods",
                &self.manifest("Service.evergrant-pods")["spec"]["selector"],
            ),
            ("PodDisruptionBudget", &disruption["selector"]["matchLabels"]),
            ("NetworkPolicy", &network["podSelector"]["matchLabels"]),
        ] {
            self.is(&format!("{what}: selects the pods"), selector, labels.clone());
        }
        self.is("StatefulSet: serviceName", &set["serviceName"], "evergrant-pods");
        self.is(
            "Service evergrant-pods: is headless",
            &self.manifest("Service.evergrant-pods")["spec"]["clusterIP"],
            "None",
        );
        for service in ["Service.evergrant", "Service.evergrant-pods"] {
            let port = &self.manifest(service)["spec"]["ports"][0]["targetPort"];
            self.is(&format!("{service}: targetPort"), port, ports["name"].clone());
        }
        self.is(
            "NetworkPolicy: port",
            &network["ingress"][0]["ports"][0]["port"],
            ports["name"].clone(),
        );
        self.is(
            "PodDisruptionBudget: maxUnavailable",
            &disruption["maxUnavailable"],
            1,
        );
        for (name, value) in entries(&self.manifest("Secret.evergrant")["stringData"]) {
            let value = value.as_str().unwrap_or_default();
            let is_placeholder = value.starts_with('<') && value.ends_with('>');
            self.holds(
                is_placeholder,
                &format!("secret.example.yaml: {name}: no value, not even one to try things with"),
            );
        }
    }

    fn kustomization(&mut self) {
        let kustomization = self.manifest("Kustomization");
        let mut listed = texts(&kustomization["resources"]);
        listed.extend(["kustomization.yaml", "secret.example.yaml"]);
        listed.sort_unstable();
        let there: Vec<_> = entries(self.at("/kubernetes/files"))
            .map(|(name, _)| name)
            .collect();
        self.holds(
            listed == there,
            "kustomization.yaml: lists every manifest but the example of a secret",
        );
        self.is(
            "kustomization.yaml: the image",
            &kustomization["images"][0]["name"],
            "evergrant",
        );
        self.is(
            "kustomization.yaml: the tag",
            &kustomization["images"][0]["newTag"],
            self.text("/package/version"),
        );
        let map = &kustomization["configMapGenerator"][0];
        self.is(
            "kustomization.yaml: the configuration",
            &map["files"][0],
            "evergrant.toml=config.toml",
        );
        let volumes = list(self.at("/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/volumes"));
        let mounted = volumes
            .iter()
            .any(|volume| volume["configMap"]["name"] == map["name"]);
        self.holds(
            mounted,
            "kustomization.yaml: its configuration is the one that is mounted",
        );
    }

    /// What kustomize makes of it; judged where it could be run.
    fn rendered(&mut self) {
        let rendered = self.at("/kubernetes/rendered");
        if rendered.is_null() {
            return;
        }
        let pod = &rendered["StatefulSet"][0]["spec"]["template"]["spec"];
        let tag = format!("/evergrant:{}", self.text("/package/version"));
        for container in list(&pod["containers"])
            .into_iter()
            .chain(list(&pod["initContainers"]))
        {
            let image = container["image"].as_str().unwrap_or_default();
            self.holds(
                image.ends_with(&tag),
                "rendered: the image has a registry and the tag",
            );
        }
        let map = &rendered["ConfigMap"][0];
        let name = &map["metadata"]["name"];
        let mounted = list(&pod["volumes"])
            .iter()
            .any(|volume| volume["configMap"]["name"] == *name);
        self.holds(
            mounted && *name != "evergrant",
            "rendered: the pods mount the configuration by the name with its hash",
        );
        self.is(
            "rendered: the configuration",
            &map["data"]["evergrant.toml"],
            self.text("/configuration_text/kubernetes"),
        );
        self.holds(
            rendered["Secret"].is_null(),
            "rendered: no secret is among what is applied",
        );
        for (kind, count) in [
            ("StatefulSet", 1),
            ("Service", 2),
            ("PodDisruptionBudget", 1),
            ("NetworkPolicy", 1),
        ] {
            self.holds(
                list(&rendered[kind]).len() == count,
                "rendered: everything is there",
            );
        }
    }
}
