"""A reference that was synchronised comes back from the checkpoint that a run resumes from, wherever that is."""

import logging
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from maskgrpo_plugin.trainer.accounted import AccountedTrainer
from maskgrpo_plugin.trainer.stages import MaskGRPOStages


class Resumes(AccountedTrainer):
    """Stands for verl's trainer, which resumes from step 3."""

    def _load_checkpoint(self):
        self.global_steps = 3

    def on_sample_end(self):
        """Of no concern here."""


class Trainer(MaskGRPOStages, Resumes):
    """Logs the folders that a reference was read from in `read`."""

    def __init__(self, root, mode, path):
        self.config = OmegaConf.create(
            {"trainer": {"default_local_dir": str(root), "resume_mode": mode, "resume_from_path": path}}
        )
        self.estimation = SimpleNamespace(reference_sync_steps=2)
        self.use_reference_policy, self.ref_in_actor = True, False
        self.read = []
        self.actor_rollout_wg = SimpleNamespace(load_reference=self.read.append)


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_the_reference_is_read_from_the_checkpoint_that_is_resumed_from(tmp_path, mode):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for root in (here, elsewhere):
        (root / "global_step_3" / "reference").mkdir(parents=True)
    trainer = Trainer(here, mode, str(elsewhere / "global_step_3"))
    trainer._load_checkpoint()
    assert trainer.read == [str((here if mode == "auto" else elsewhere) / "global_step_3" / "reference")]


def test_a_checkpoint_without_a_reference_is_named(tmp_path, caplog):
    trainer = Trainer(tmp_path, "resume_path", str(tmp_path / "global_step_3"))
    with caplog.at_level(logging.WARNING):
        trainer._load_checkpoint()
    assert trainer.read == [] and str(tmp_path / "global_step_3" / "reference") in caplog.text
