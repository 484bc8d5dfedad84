"""Cluster files: accepted by Ray's own schema, closed to the world, cheap when idle."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema.pipelines.capacity import node_types

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

CLUSTERS = Path(__file__).parents[1] / "clusters"
CLOUDS = ["aws", "gcp"]
LAUNCHED = [*CLOUDS, "local"]


def read(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content


def documents(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    found = yaml.safe_load_all((CLUSTERS / f"{name}.yaml").read_text())
    return {(item["kind"], item["metadata"]["name"]): item for item in found}


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    types = config["available_node_types"]
    return {name: kind for name, kind in types.items() if name != config["head_node_type"]}


def start_commands(config: dict[str, Any]) -> list[str]:
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(name))
    validate_config(prepared)
    # What a file leaves out, Ray fills in: for instance the installation of a nightly build.
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[key] == []


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_schema_would_find_a_misspelt_key(name: str) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    wrong = read(name) | {"idle_timeout_minuets": 1}
    with pytest.raises(ValidationError, match="idle_timeout_minuets"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", LAUNCHED)
def test_tokens_are_said_in_every_start_command(name: str) -> None:
    config = read(name)
    commands = start_commands(config)
    assert len(commands) == 2
    for command in commands:
        assert command.index("export RAY_AUTH_MODE=token ") < command.index("ray start")
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_dashboard_stays_on_the_loopback(name: str) -> None:
    (head,) = [command for command in start_commands(read(name)) if "--head" in command]
    assert re.search(r"--dashboard-host=127\.0\.0\.1\b", head)


@pytest.mark.parametrize("name", LAUNCHED)
def test_head_and_workers_share_one_storage_root(name: str) -> None:
    roots = {re.search(r"KINEMA_STORAGE=(\S+?);? ", c) for c in start_commands(read(name))}
    assert len({match and match[1] for match in roots}) == 1


@pytest.mark.parametrize("path", sorted(CLUSTERS.iterdir()), ids=lambda path: path.name)
def test_nothing_is_open_to_the_world(path: Path) -> None:
    text = path.read_text()
    for opening in ("0.0.0.0/0", "::/0", "LoadBalancer", "NodePort", "hostNetwork"):
        assert opening not in text


def test_aws_uses_groups_of_its_own() -> None:
    # Without them Ray makes a security group that admits SSH from everywhere.
    config = read("aws")
    assert config["provider"]["use_internal_ips"] is True
    assert "security_group" not in config["provider"]
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"]
        assert kind["node_config"]["SubnetIds"]
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_gcp_gives_no_public_addresses() -> None:
    config = read("gcp")
    assert config["provider"]["use_internal_ips"] is True
    for kind in config["available_node_types"].values():
        for interface in kind["node_config"]["networkInterfaces"]:
            assert set(interface) == {"subnetwork"}


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_start_on_demand_and_end_when_idle(name: str) -> None:
    config = read(name)
    assert 5 <= config["idle_timeout_minutes"] <= 30
    ceilings = [kind["max_workers"] for kind in workers(config).values()]
    assert config["max_workers"] == sum(ceilings)
    assert all(kind["min_workers"] == 0 for kind in workers(config).values())


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_spot_and_the_head_is_not(name: str) -> None:
    config = read(name)
    head = config["available_node_types"][config["head_node_type"]]["node_config"]
    assert not {"InstanceMarketOptions", "scheduling"} & set(head)
    for kind in workers(config).values():
        spot = {
            "aws": kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType"),
            "gcp": kind["node_config"].get("scheduling", {}).get("provisioningModel", "").lower(),
        }[name]
        assert spot == "spot"
        assert kind["labels"] == {"market": "spot"}


@pytest.mark.parametrize("name", CLOUDS)
def test_cores_extract_and_gpus_train(name: str) -> None:
    config = read(name)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "trial_driver": 1000}
    assert types["extraction"]["resources"].keys() == {"CPU"}
    assert types["training"]["resources"]["GPU"] >= 1
    assert all(isinstance(n, int) for kind in types.values() for n in kind["resources"].values())


def test_local_has_a_pool_and_no_node_types() -> None:
    # Ray refuses node types for this provider, so resources are in the start commands.
    config = read("local")
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    # The pool's one node type has no resources, so no request would ever start one.
    assert config["min_workers"] == config["max_workers"]
    assert "available_node_types" not in config
    (head,) = [command for command in start_commands(config) if "--head" in command]
    assert "--num-cpus=0" in head
    assert """--resources='{"trial_driver":1000}'""" in head


@pytest.mark.parametrize("name", CLOUDS)
def test_jobs_are_told_what_may_start(name: str) -> None:
    config = read(name)
    (head,) = [command for command in start_commands(config) if "--head" in command]
    told = re.search(r"KINEMA_NODE_TYPES=(\S+?);? ", head)
    assert told is not None
    expected = [(k["max_workers"], k["resources"]) for k in workers(config).values()]
    assert node_types(told[1]) == expected


def test_kuberay_jobs_are_told_what_may_start() -> None:
    spec = documents("kuberay")["RayCluster", "kinema"]["spec"]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    names = {"cpu": "CPU", "nvidia.com/gpu": "GPU"}
    expected = []
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        has = {names[name]: float(n) for name, n in limits.items() if name in names}
        expected.append((group["maxReplicas"], has))
    assert node_types(environment(head)["KINEMA_NODE_TYPES"]) == expected


def groups() -> dict[str, dict[str, Any]]:
    spec = documents("kuberay")["RayCluster", "kinema"]["spec"]
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def pods() -> list[dict[str, Any]]:
    spec = documents("kuberay")["RayCluster", "kinema"]["spec"]
    return [g["template"]["spec"] for g in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def test_kuberay_has_the_keys_the_operator_reads() -> None:
    found = documents("kuberay")
    cluster = found["RayCluster", "kinema"]
    assert cluster["apiVersion"] == "ray.io/v1"
    assert cluster["spec"].keys() == {
        "rayVersion",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"
    assert 300 <= cluster["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] <= 1800
    for group in groups().values():
        assert group.keys() == {
            "groupName",
            "replicas",
            "minReplicas",
            "maxReplicas",
            "rayStartParams",
            "template",
        }
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_kuberay_runs_the_version_that_is_tested() -> None:
    version = documents("kuberay")["RayCluster", "kinema"]["spec"]["rayVersion"]
    constraints = (CLUSTERS.parent / "constraints.txt").read_text().splitlines()
    assert f"ray=={version}" in constraints


def test_kuberay_workers_are_spot_on_demand() -> None:
    assert groups().keys() == {"extraction", "training"}
    for group in groups().values():
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        assert group["template"]["spec"]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    limits = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name, group in groups().items()
    }
    assert "nvidia.com/gpu" not in limits["extraction"]
    assert int(limits["training"]["nvidia.com/gpu"]) >= 1


def test_kuberay_head_holds_no_work_and_is_not_spot() -> None:
    head = documents("kuberay")["RayCluster", "kinema"]["spec"]["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert head["rayStartParams"]["num-cpus"] == "0"
    # KubeRay puts the value on a shell's command line, hence the quotes within quotes.
    assert head["rayStartParams"]["resources"] == r'"{\"trial_driver\": 1000}"'
    affinity = head["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "cloud.google.com/gke-spot", "operator": "DoesNotExist"}
    ]


def test_kuberay_pods_have_token_and_end_for_good() -> None:
    secret = {"secretKeyRef": {"name": "kinema-ray-token", "key": "auth_token"}}
    spec = documents("kuberay")["RayCluster", "kinema"]["spec"]
    containers = [container for pod in pods() for container in pod["containers"]]
    for container in [*containers, spec["autoscalerOptions"]]:
        assert environment(container)["RAY_AUTH_MODE"] == "token"
        assert environment(container)["RAY_AUTH_TOKEN"] == secret
    for pod in pods():
        assert pod["restartPolicy"] == "Never"
        assert pod["serviceAccountName"] == "kinema"
    for container in containers:
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_kubernetes_ports_are_for_the_project_only() -> None:
    ray = documents("kuberay")["NetworkPolicy", "kinema-ray"]["spec"]
    assert ray["policyTypes"] == ["Ingress"]
    assert ray["ingress"] == [{"from": [{"podSelector": ray["podSelector"]}]}]
    mlflow = documents("mlflow")["NetworkPolicy", "kinema-mlflow"]["spec"]
    (rule,) = mlflow["ingress"]
    label = {"app.kubernetes.io/part-of": "kinema"}
    assert rule["from"] == [{"podSelector": {"matchLabels": label}}]
    for pod_template in [
        documents("kuberay")["RayCluster", "kinema"]["spec"]["headGroupSpec"]["template"],
        *(group["template"] for group in groups().values()),
    ]:
        assert label.items() <= pod_template["metadata"]["labels"].items()


def test_mlflow_asks_for_passwords_and_knows_its_names() -> None:
    found = documents("mlflow")
    pod = found["Deployment", "mlflow"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(argument.split("=", 1) for argument in container["args"])
    assert options["--app-name"] == "basic-auth"
    assert "*" not in options["--allowed-hosts"].split(",")
    assert {"mlflow", "mlflow:5000"} <= set(options["--allowed-hosts"].split(","))
    passwords = environment(container)
    for name in ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        assert passwords[name]["secretKeyRef"]["name"] == "kinema-mlflow"
    assert "admin_password" not in found["ConfigMap", "kinema-mlflow"]["data"]["basic_auth.ini"]


def test_mlflow_has_one_writer_and_a_disk() -> None:
    found = documents("mlflow")
    deployment = found["Deployment", "mlflow"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    (container,) = deployment["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert "--backend-store-uri=sqlite:////data/mlflow.db" in container["args"]
    assert mounts["data"] == "/data"
    selector = found["Service", "mlflow"]["spec"]["selector"]
    assert selector.items() <= deployment["template"]["metadata"]["labels"].items()


def test_all_run_the_same_image() -> None:
    images = {read(name)["docker"]["image"] for name in CLOUDS}
    images |= {container["image"] for pod in pods() for container in pod["containers"]}
    deployment = documents("mlflow")["Deployment", "mlflow"]
    images.add(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    assert len(images) == 1
    (image,) = images
    assert f"-t {image} " in (CLUSTERS / "Dockerfile").read_text()


def test_the_image_has_what_runs_need() -> None:
    text = (CLUSTERS / "Dockerfile").read_text()
    packages = re.search(r"apt-get install (.*?)&&", text, re.DOTALL)
    assert packages is not None
    assert {"g++", "ninja-build", "rsync", "openssh-client"} <= set(packages[1].split())
    assert "--constraint constraints.txt" in text
    # MLflow imports it for gs:// artifacts and does not depend on it.
    assert " google-cloud-storage " in text
    assert "-m kinema.training.engine --prebuild" in text
    assert text.index("USER ubuntu") < text.index("--prebuild")


def test_a_job_brings_its_code_and_its_token() -> None:
    environment = read("runtime_env")
    assert environment["working_dir"] == "."
    assert environment["py_modules"] == ["platform/kinema"]
    assert environment["env_vars"]["RAY_AUTH_MODE"] == "token"
    assert all(isinstance(value, str) for value in environment["env_vars"].values())
    for module in environment["py_modules"]:
        assert (CLUSTERS.parent / module / "__init__.py").is_file()
    from ray.runtime_env import RuntimeEnv

    RuntimeEnv(env_vars=environment["env_vars"])
