"""Layers, their order, and what people are told when a key is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ByteSize

from sllmd.api.exposure import check_exposure
from sllmd.api.keys import is_loopback
from sllmd.config import paths
from sllmd.config.layers import key_lines
from sllmd.config.loading import Loaded, load_config
from sllmd.core.errors import ConfigError, PathNotFound


def load(path: Path | None = None, text: str | None = None, **options: object) -> Loaded:
    if path is not None and text is not None:
        path.write_text(text, encoding="utf-8")
    options.setdefault("environ", {})
    return load_config(path, **options)  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sllmd.toml"


def test_each_layer_beats_the_one_below_it(file: Path) -> None:
    conf_d = file.parent / "conf.d"
    conf_d.mkdir()
    text = '[serving]\nkeep_alive = "1m"\n'
    assert load(file, "").config.serving.keep_alive is None
    assert load(file, text).config.serving.keep_alive == 60
    (conf_d / "10-a.toml").write_text('[serving]\nkeep_alive = "2m"\n')
    assert load(file, text).config.serving.keep_alive == 120
    (conf_d / "20-b.toml").write_text('[serving]\nkeep_alive = "3m"\n')
    assert load(file, text).config.serving.keep_alive == 180
    environ = {"SLLMD_SERVING__KEEP_ALIVE": "4m"}
    assert load(file, text, environ=environ).config.serving.keep_alive == 240
    flags = [(("serving", "keep_alive"), "5s", "--keep-alive")]
    assert load(file, text, environ=environ, flags=flags).config.serving.keep_alive == 5


def test_origins_name_file_and_line_variable_and_flag(file: Path) -> None:
    loaded = load(
        file,
        '# a comment\n[serving]\n\nkeep_alive = "1m"\n[models."qwen3-8b"]\npreload = "dram"\n',
        environ={"SLLMD_LOG__LEVEL": "debug"},
        flags=[(("node", "name"), "one", "--name")],
    )
    assert loaded.origin(("serving", "keep_alive")) == f"{file}:4"
    assert loaded.origin(("models", "qwen3-8b", "preload")) == f"{file}:6"
    assert loaded.origin(("log", "level")) == "environment SLLMD_LOG__LEVEL"
    assert loaded.origin(("node", "name")) == "--name"
    assert loaded.origin(("serving", "queue_timeout")) == "default"


def test_tables_merge_and_lists_are_replaced(file: Path) -> None:
    (file.parent / "conf.d").mkdir()
    (file.parent / "conf.d" / "a.toml").write_text('[models.a]\nbatch_max = 3\naliases = ["y"]\n')
    loaded = load(file, '[models.a]\npreload = "dram"\naliases = ["x", "z"]\n')
    model = loaded.config.models["a"]
    assert (model.preload, model.batch_max, model.aliases) == ("dram", 3, ("y",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[api]\nbackog = 1\n", ":2: unknown key `api.backog`; did you mean `api.backlog`?"),
        ("[servin]\nkeep_alive = 1\n", ":1: unknown key `servin`; did you mean `serving`?"),
        ("\n[node]\nbacklog = 1\n", ":3: unknown key `node.backlog`; did you mean `api.backlog`?"),
        ("[models.a]\nprelod = 1\n", ":2: unknown key `models.a.prelod`; did you mean `models.a.preload`?"),
        ("[api]\nzzzz = 1\n", ":2: unknown key `api.zzzz`"),
        ('[serving]\nkeep_alive = "soon"\n', ":2: `serving.keep_alive`: `soon` is not a duration"),
        ('[log]\nlevel = "loud"\n', ":2: `log.level`: input should be 'debug', 'info', 'warning' or 'error'"),
        ("[log\n", ":1: not valid TOML"),
        ('[api]\nlisten = "127.0.0.1:1"\n', ':2: `api.listen`: should be a list: ["a", "b"]'),
        ("[api]\nlisten = [1]\n", ":2: `api.listen`: should be a text, in quotes"),
        ("[node]\ndata_dir = [1]\n", ":2: `node.data_dir`: should be the text of a path"),
        ("[api]\nrequire_key = 7\n", ":2: `api.require_key`: "),
        ('[loader]\nslab_bytes = "x"\n', ":2: `loader.slab_bytes`: is not a size (write for example"),
        ("models.q = 3\n", ":1: `models.q`: should be a table"),
        ("log = 1\n", ":1: `log`:"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_with_its_line(file: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    assert f"{file}{expected}" in caught.value.message


def test_all_wrong_keys_are_told_at_once(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, "[log]\nlevle = 1\n[api]\nlistn = 1\n")
    assert len(caught.value.message.splitlines()) == 2


@pytest.mark.parametrize("name", ["SLLMD_SERVIN__KEEP_ALIVE", "SLLMD_SERVING__KEEP_ALVE"])
def test_an_unknown_variable_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"environment {name}: unknown key"):
        load(environ={name: "1"})


def test_a_variable_without_its_section_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"SLLMD_DATA_DIR.*SLLMD_NODE__DATA_DIR"):
        load(environ={"SLLMD_DATA_DIR": "/tmp"})


@pytest.mark.parametrize(
    ("name", "meant"), [("SLLMD_ADRR", "SLLMD_ADDR"), ("SLLMD_API_KYE", "SLLMD_API_KEY")]
)
def test_a_misspelt_variable_is_told_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is no variable of sllmd's; did you mean {meant}"):
        load(environ={name: "x"})


def test_variables_of_the_command_line_and_of_the_scripts_are_no_keys() -> None:
    load(environ={"SLLMD_ADDR": "x", "SLLMD_API_KEY": "y", "SLLMD_DEMO_MODEL": "z"})


def test_what_kubernetes_tells_of_a_service_called_sllmd_is_nobodys_mistake() -> None:
    at = "10.0.0.7"
    load(
        environ={
            "SLLMD_SERVICE_HOST": at,
            "SLLMD_SERVICE_PORT": "8343",
            "SLLMD_SERVICE_PORT_HTTP": "8343",
            "SLLMD_PORT": f"tcp://{at}:8343",
            "SLLMD_PORT_8343_TCP": f"tcp://{at}:8343",
            "SLLMD_PORT_8343_TCP_ADDR": at,
            "SLLMD_NODES_SERVICE_HOST": at,
        }
    )
    with pytest.raises(ConfigError, match="SLLMD_PORT is no variable"):
        load(environ={"SLLMD_PORT": "8343"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:1,127.0.0.1:2", ("127.0.0.1:1", "127.0.0.1:2")),
        ('["127.0.0.1:1"]', ("127.0.0.1:1",)),
    ],
)
def test_lists_in_the_environment(text: str, expected: tuple[str, ...]) -> None:
    assert load(environ={"SLLMD_API__LISTEN": text}).config.api.listen == expected


def test_a_value_has_no_keys() -> None:
    environ = {"SLLMD_API__LISTEN": "127.0.0.1:1", "SLLMD_API__LISTEN__FIRST": "x"}
    with pytest.raises(ConfigError, match=r"environment SLLMD_API__LISTEN__FIRST: `api.listen` has a value"):
        load(environ=environ)


def test_lists_that_may_be_absent() -> None:
    assert load(environ={"SLLMD_WORKERS__FAKE__TOKEN_IDS": "3,9"}).config.workers.fake.token_ids == (3, 9)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(PathNotFound, match=r"absent\.toml is not there"):
        load(tmp_path / "absent.toml")


def test_references_are_replaced(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from-a-file\n")
    monkeypatch.setenv("WHO", "me")
    loaded = load(file, f'[node]\nname = "${{env:WHO}}-${{file:{secret}}}"\n')
    assert loaded.config.node.name == "me-from-a-file"


@pytest.mark.parametrize("reference", ["${env:NOT_SET_ANYWHERE}", "${file:/not/there}"])
def test_a_dangling_reference_names_its_line(file: Path, reference: str) -> None:
    with pytest.raises(ConfigError, match=f"{file}:2: "):
        load(file, f'[node]\nname = "{reference}"\n')


def test_durations_and_sizes(file: Path) -> None:
    config = load(
        file,
        '[serving]\nkeep_alive = -1\ndrain_timeout = "1h30m"\n[api]\nbody_max_bytes = "16MiB"\n',
    ).config
    assert config.serving.keep_alive == math.inf
    assert config.serving.drain_timeout == 5400
    assert config.api.body_max_bytes == ByteSize(16 * 1024 * 1024)


@pytest.mark.parametrize(
    "text",
    [
        '[serving]\nkeep_alive = "-nonsense"\n',
        "[serving]\nkeep_alive = -5\n",
        "[serving]\nkeep_alive = [1]\n",
        '[serving]\nqueue_timeout = "20m"\n',
        "[serving]\ndrain_timeout = -1\n",
        "[loader]\nstall_timeout_seconds = -1\n",
        "[loader]\nstall_timeout_seconds = 0\n",
        "[loader]\nhttp_retry_seconds = -1\n",
        '[loader]\nclose_timeout_seconds = "99999999999s"\n',
        "[api]\nidle_timeout = -1\n",
        "[workers]\nhang_timeout_seconds = -1\n",
    ],
)
def test_a_duration_that_its_user_cannot_take_is_refused(file: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{file}:2: "):
        load(file, text)


@pytest.mark.parametrize("budget", ["63MiB", "0.000001%"])
def test_a_slab_must_fit_into_the_budget(file: Path, budget: str) -> None:
    with pytest.raises(ConfigError, match="no model could be loaded"):
        load(file, f'[loader]\ndram_budget = "{budget}"\n')


def test_dev_is_a_laptop(file: Path) -> None:
    loaded = load(dev=True)
    config = loaded.config
    assert config.models["tiny"].source == "builtin:tiny"
    assert config.loader.budget_bytes(64 << 30) == 1 << 30
    assert config.devices.backend == "cpu"
    assert all(is_loopback(address) for address in config.api.listen)
    assert config.serving.keep_alive < 60
    assert loaded.origin(("devices", "backend")) == "--dev"
    named = load(file, '[devices]\nbackend = "auto"\n', dev=True)
    assert named.config.devices.backend == "auto"


def test_an_alias_has_one_owner(file: Path) -> None:
    with pytest.raises(ConfigError, match="also an alias of `a`"):
        load(file, '[models.a]\naliases = ["x"]\n[models.b]\naliases = ["x"]\n')
    with pytest.raises(ConfigError, match="a model's name"):
        load(file, '[models.a]\naliases = ["b"]\n[models.b]\n')


def test_engine_options_take_what_a_model_sets(file: Path) -> None:
    config = load(file, "[engine]\nbatch_max = 8\n[models.a]\nthreads = 3\n").config
    plain, own = config.engine.options(), config.engine.options(config.models["a"])
    assert (plain.threads, plain.batch_max) == (0, 8)
    assert (own.threads, own.batch_max, own.dtype) == (3, 8, "auto")


def test_other_machines_need_keys(file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    text = f'[api]\nlisten = ["127.0.0.1:0", "0.0.0.0:8343"]\nkeys_file = "{keys}"\n'
    by_socket = load(file, text).config.api
    check_exposure(by_socket)  # over its Unix socket a key can still be made
    api = by_socket.model_copy(update={"uds": None})
    with pytest.raises(ConfigError) as caught:
        check_exposure(api)
    assert "0.0.0.0:8343" in caught.value.message
    assert str(keys) in str(caught.value.hint)
    keys.write_text("")
    with pytest.raises(ConfigError):
        check_exposure(api)
    keys.write_text('[[keys]]\nid = "me"\nsecret = "sk-0123456789"\n')
    check_exposure(api)
    check_exposure(load(file, text + "require_key = false\n").config.api)


def test_lines_of_keys() -> None:
    text = 'top = 1\n[a.b]\nc = 2\n"d e" = 3\n# f = 4\n[models."x.y"]\ng.h = 5\n'
    assert key_lines(text) == {
        ("top",): 1, ("a", "b"): 2, ("a", "b", "c"): 3, ("a", "b", "d e"): 4, ("models", "x.y"): 6,
        ("models", "x.y", "g", "h"): 7,
    }  # fmt: skip


def test_directories_follow_systemd_then_root_then_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.data_directory() == Path("/var/lib/sllmd")
    assert paths.socket_file() == Path("/run/sllmd/sllmd.sock")
    assert load_config(dev=True, environ={}).config.node.data_dir == Path("/home/me/.local/share/sllmd")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert paths.data_directory() == Path("/home/me/.local/share/sllmd")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert paths.socket_file() == Path("/run/user/1000/sllmd/sllmd.sock")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/other:/var/lib/second")
    assert paths.data_directory() == Path("/var/lib/other")


@pytest.mark.parametrize("address", ["9411", "nonsense", "127.0.0.1:99999", "127.0.0.1:", "box:http"])
def test_what_is_no_address_is_called_so(address: str) -> None:
    with pytest.raises(ConfigError, match=f"`{address}` is not HOST:PORT"):
        load(environ={"SLLMD_API__LISTEN": address})
