"""Bodies that are not what they should be: each is a WireError, before it costs anything, and short."""

import json
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from alignment_trainer.checkpoint.claims import checkpoints_of
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.group_arrays import group_arrays
from alignment_trainer.data.storage import Folder
from alignment_trainer.experience import critic_wire
from alignment_trainer.experience.minibatches import UpdateKey
from alignment_trainer.experience.value_trainer import ValueBatch
from alignment_trainer.process.errors import WireError
from alignment_trainer.serving import wire
from alignment_trainer.vllm.wire import parse_request

STORAGE = Folder(Path("/volumes/work/helpful"))
GROUPS = (PromptGroup((1, 2), ((3, 4), (5,))),)
KEY = {"attempt": 1, "step": 0, "epoch": 0, "minibatch": 0}
NUMBERS = {name: np.zeros(3, np.float32) for name in ("values", "returns", "weights")}


def update(key: str = json.dumps(KEY), learning_rate: str = "1e-3", scale: str = "1", **numbers: object) -> bytes:
    arrays = {**group_arrays(GROUPS), **NUMBERS, **numbers}
    return save(arrays, metadata={"key": key, "learning_rate": learning_rate, "scale": scale})


DECODERS: dict[str, Callable[[bytes], object]] = {
    "groups": lambda body: wire.decode_request(body, 100),
    "values": lambda body: critic_wire.decode_groups(body, 100),
    "update": lambda body: critic_wire.decode_update(body, 100),
    "begin": lambda body: critic_wire.decode_begin(body, STORAGE, None),
    "write": lambda body: critic_wire.decode_write(body, STORAGE),
    "completions": lambda body: parse_request(body, 100, 64),
}


def test_what_the_actor_sends_is_understood() -> None:
    key, rate, batch = critic_wire.decode_update(update(), 6)
    assert (key, rate, batch.groups, batch.scale) == (UpdateKey(**KEY), 1e-3, GROUPS, 1.0)
    sent = critic_wire.encode_update(key, 0.1, ValueBatch(GROUPS, *(torch.ones(3) for _ in range(3)), scale=2.0))
    assert critic_wire.decode_update(sent, 6)[1] == 0.1
    written = critic_wire.decode_write(critic_wire.encode_write("0001/00000008"), STORAGE)
    assert written == checkpoints_of(STORAGE).within("0001/00000008")


MALFORMED = [
    *((name, body) for name in DECODERS for body in (b"", b"x", b"{}", b"[1]", b"null", b"\xff" * 40, b"[" * 100_000)),
    ("begin", b'{"start": 7, "resumes": true}'),
    ("begin", b'{"start": "0001/00000008", "resumes": "yes"}'),
    ("begin", b'{"start": "0001/00000008", "resumes": false}'),
    ("begin", b'{"start": "../other", "resumes": true}'),
    ("write", b'{"checkpoint": "/etc/elsewhere"}'),
    ("write", b'{"checkpoint": "../../other-job"}'),
    ("write", b'{"checkpoint": "a\\u0000b"}'),
    ("update", update(key="{}")),
    ("update", update(key="[]")),
    ("update", update(key=json.dumps(KEY | {"step": "0"}))),
    ("update", update(learning_rate="nan")),
    ("update", update(learning_rate="quick")),
    ("update", update(scale="-1")),
    ("update", update(values=np.zeros(2, np.float32))),
    ("update", update(returns=np.array([0, np.inf, 0], np.float32))),
    ("update", update(weights=np.zeros(3, np.int32))),
    ("values", save(group_arrays((PromptGroup((1,), ((100,),)),)))),
    ("values", save(group_arrays(GROUPS) | {"prompt_lengths": np.array([3], np.int32)})),
]


@pytest.mark.parametrize(("name", "body"), MALFORMED)
def test_a_malformed_body_is_a_wire_error(name: str, body: bytes) -> None:
    with pytest.raises(WireError) as error:
        DECODERS[name](body)
    assert len(str(error.value)) < 1000


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_whatever_comes_is_a_wire_error(name: str, body: bytes) -> None:
    with pytest.raises(WireError):
        DECODERS[name](body)


@given(st.integers(0, len(update()) - 1), st.integers(0, 255))
def test_a_flipped_byte_ends_nothing(place: int, byte: int) -> None:
    body = bytearray(update())
    body[place] = byte
    with suppress(WireError):
        critic_wire.decode_update(bytes(body), 100)


def test_a_body_costs_nothing_before_its_size_is_known_to_be_fair() -> None:
    header = json.dumps({f"t{n}": {"dtype": "I32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)})
    ones = np.ones(wire.MAX_SEQUENCES + 1, np.int32)
    names = ("prompt_tokens", "prompt_lengths", "completion_tokens", "completion_lengths", "completions_per_row")
    bodies = {
        "a header of": struct.pack("<Q", len(header)) + header.encode(),
        "entries": save({name: ones.copy() for name in names}),
    }
    for words, body in bodies.items():
        tracemalloc.start()
        with pytest.raises(WireError, match=words) as error:
            wire.decode_request(body, 100)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3 * len(body), "bytes, of which two copies are numpy's"
        assert len(str(error.value)) < 300
