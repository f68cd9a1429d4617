import socket

from tests.cli.conftest import refused


def test_what_cannot_be_watched_is_refused(cli, tmp_path):
    refused(cli("watch", tmp_path / "none"), 2, "none", "expected a folder with runs", "found nothing")
    (tmp_path / "file").write_text("")
    refused(cli("watch", tmp_path / "file"), 2, "found a file")
    refused(cli("watch", tmp_path, "--host", "0.0.0.0"), 2, "give --public")
    refused(cli("watch", tmp_path, "--port", "65536"), 2, "65,535")


def test_a_port_in_use_is_named(cli, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused(cli("watch", tmp_path, "--port", str(port)), 6, str(port), "in use")


def test_a_missing_package_is_named_with_its_extra(cli, tmp_path, monkeypatch):
    modules = __import__("sys").modules
    for name in [name for name in modules if name.startswith(("pixelspace.serving", "starlette"))]:
        monkeypatch.delitem(modules, name)
    monkeypatch.setitem(modules, "starlette", None)
    refused(cli("watch", tmp_path), 6, "pip install 'pixelspace[ui]'")
