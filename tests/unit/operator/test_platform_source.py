"""Where the platform's configuration comes from, and what happens where it is not there."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from tests.unit.operator.faults import answering, running, until

from alignment_operator.kube import platform
from alignment_operator.kube.platform import PlatformSource, UnusablePlatform
from alignment_operator.kube.telemetry import Telemetry


class ConfigMap:
    def __init__(self, **data: str) -> None:
        self.data: dict[str, str] | None = data

    async def serve(self, _: web.Request) -> web.Response:
        return web.json_response({} if self.data is None else {"data": self.data})


@pytest.mark.parametrize("data", [None, {}, {"platform.yml": "image: x"}])
async def test_a_config_map_without_the_key_is_an_error_that_names_it(data: dict[str, str] | None) -> None:
    config = ConfigMap()
    config.data = data
    async with answering(config.serve) as client:
        source = PlatformSource("configmap://ns/pools", client, Telemetry())
        with pytest.raises(UnusablePlatform, match=r"configmap://ns/pools: has no key `platform\.yaml`, but "):
            await source.load()


@pytest.mark.parametrize("origin", ["configmap://pools", "configmap://ns/", "configmap:///pools"])
async def test_an_origin_that_names_no_config_map_is_refused(origin: str) -> None:
    async with answering(ConfigMap().serve) as client:
        with pytest.raises(UnusablePlatform, match="names no ConfigMap; write configmap://namespace/name"):
            await PlatformSource(origin, client, Telemetry()).load()


async def test_a_file_that_is_no_utf8_is_an_error_that_says_so(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_bytes(b"image: \xff")
    async with answering(ConfigMap().serve) as client:
        with pytest.raises(UnusablePlatform, match="is not UTF-8"):
            await PlatformSource(str(file), client, Telemetry()).load()


async def test_a_key_that_goes_later_leaves_the_last_good_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "EVERY_SECONDS", 0.01)
    config, telemetry = ConfigMap(**{"platform.yaml": "image: trainer:1"}), Telemetry()
    changes = asyncio.Event()
    async with answering(config.serve) as client:
        source = PlatformSource("configmap://ns/pools", client, telemetry)
        await source.load()
        async with running(source.run(changes.set)) as following:
            config.data = None
            await until(lambda: b"platform_errors_total 0.0" not in telemetry.text())
            assert source.current.image == "trainer:1"
            config.data = {"platform.yaml": "image: trainer:2"}
            await until(changes.is_set)
            assert not following.done()
    assert source.current.image == "trainer:2"
