"""Both vLLM and the trainer have to fit on one GPU; who cannot is told what would do."""

import pytest
from pydantic import ValidationError

from serve.settings import GatewaySettings
from tests.unit.test_memory import GIB, LARGE, SMALL
from trainer import sharing
from trainer.progress import RecipeRefused


def test_what_is_computed_leaves_each_what_it_needs() -> None:
    parted = sharing.part(SMALL, 24 * GIB, rank=16, length=1024)

    assert 0 < parted.least < parted.engine < parted.most < 1
    assert parted.engine * 24 * GIB >= sharing.engine_needs(SMALL, rank=16)
    assert parted.trainer + parted.engine + sharing.RESERVE == pytest.approx(1)
    assert sharing.part(SMALL, 24 * GIB, rank=16, length=1024, engine=0.45).trainer == pytest.approx(0.5)


def test_a_share_that_leaves_one_of_them_too_little_is_refused_with_those_that_would_do() -> None:
    parted = sharing.part(SMALL, 24 * GIB, rank=16, length=1024)
    would = rf"One from {parted.least:.2f} to {parted.most:.2f} would do"

    with pytest.raises(RecipeRefused, match=rf"HEED_GPU_SHARE=0\.9 leaves the trainer too little\. {would}"):
        sharing.part(SMALL, 24 * GIB, rank=16, length=1024, engine=0.9)
    with pytest.raises(RecipeRefused, match=rf"HEED_GPU_SHARE=0\.1 leaves vLLM too little\. {would}"):
        sharing.part(SMALL, 24 * GIB, rank=16, length=1024, engine=0.1)


def test_a_base_that_fits_with_no_share_is_refused_with_the_other_policy() -> None:
    with pytest.raises(RecipeRefused, match=r"do not fit together.*HEED_QLORA=on.*HEED_GPU_POLICY=sleep would do"):
        sharing.part(LARGE, 24 * GIB, rank=16, length=1024)

    assert sharing.part(LARGE, 48 * GIB, rank=16, length=1024).least > 0.3


def test_a_stall_that_outlasts_the_patience_of_requests_is_refused_with_one_that_would_do() -> None:
    with pytest.raises(ValidationError, match=r"more than HEED_ENGINE_WAIT_S, 60 s\. HEED_ENGINE_WAIT_S=105 would do"):
        GatewaySettings(gpu_policy="sleep", gpu_stall_s=90)

    assert GatewaySettings(gpu_policy="shared", gpu_stall_s=90).gpu_stall_s == 90
