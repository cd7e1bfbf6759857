"""Names are DNS labels, and those of two jobs never meet."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.operator.small_cluster import make_job

from alignment_api.contract.job import MAX_NAME
from alignment_api.contract.roles import ROLES
from alignment_operator import names

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@given(
    name=st.from_regex(rf"[a-z0-9]([-a-z0-9]{{0,{MAX_NAME - 2}}}[a-z0-9])?", fullmatch=True),
    uid=st.uuids(),
    index=st.integers(0, 255),
    life=st.integers(1, 99_999),
)
def test_every_name_is_a_dns_label(name: str, uid: object, index: int, life: int) -> None:
    job = make_job(name=name, uid=str(uid))
    made = [names.instance_name(job, role, index, life) for role in ROLES]
    made += [names.config_name(job, life), names.token_name(job), names.policy_name(job)]
    made += [names.storage_claim(job), names.output_claim(job)]
    made += [f(job, role) for f in (names.server_name, names.gang_name) for role in ROLES]
    assert all(LABEL.fullmatch(one) for one in made)
    assert len(set(made)) == len(made)


def test_a_job_that_is_applied_again_meets_no_leftovers() -> None:
    first, second = (names.instance_name(make_job(uid=uid), "policy", 0, 1) for uid in ("a", "b"))
    assert first.startswith("helpful-policy-0-1-")
    assert first != second


def test_long_names_differ_though_they_are_cut_alike() -> None:
    first, second = (make_job(name="x" * 39 + last, uid=last) for last in "ab")
    assert names.instance_name(first, "reference", 255, 12345) != names.instance_name(second, "reference", 255, 12345)
