"""Trials among candidate shapes: how each is healed, and when there is no time for it."""

from dataclasses import replace

from compress.distill.options import HealOptions
from compress.prune.search import trial_of

HEALING = HealOptions(heal_minutes=20, heal_loss="kl", heal_labels=0.3, own_replies=0.2, batch_size=4, seed=5)


def test_a_trial_heals_as_the_whole_healing_will():
    """A shape was chosen by a loss that it was not healed with afterwards."""
    trial = trial_of(HEALING, windows=1000, candidates=4)
    assert (trial.heal_minutes, trial.heal_labels, trial.seed, trial.batch_size) == (2.0, 0.3, 5, 4)
    assert (trial.own_replies, trial.teacher_samples) == (0.0, False)
    control = replace(HEALING, heal_loss="ce", heal_labels=0.0)
    assert trial_of(control, windows=1000, candidates=4).heal_loss == "ce"


def test_trials_share_a_fifth_of_the_budget():
    """Trials ate the healing that they were to choose for, or were too short to tell shapes apart."""
    epochs = replace(HEALING, heal_minutes=None, heal_epochs=4.0)
    trial = trial_of(epochs, windows=1000, candidates=3)
    # of the 1,000 steps, among two finalists
    assert (trial.heal_steps, trial.heal_epochs, trial.heal_minutes) == (100, None, None)
    assert trial_of(epochs, windows=100_000, candidates=3).heal_steps == 300
    assert trial_of(epochs, windows=250, candidates=3) is None
    assert trial_of(replace(HEALING, heal_minutes=4), windows=1000, candidates=4) is None
