"""Learning rate and temperature: pure functions of how far the training has come.

Source: the schedules of the TRAR-VQA program; differences are named in the docstrings.
"""

from __future__ import annotations

from trarctl.config.settings import TrainSettings


def learning_rate(settings: TrainSettings, *, epoch: int, step: int, num_samples: int) -> float:
    """The rate of one optimizer step, counted from 1 since the start of the training; ``epoch`` counts from 0.

    The first ``warmup_epochs + 1`` epochs (of ``num_samples``, those that do not fill a batch included) are cut into
    quarters, by step; in quarter i the rate is base * i / (warmup_epochs + 1), afterwards base. The base falls at the
    start of each of ``decay_epochs``. With ``caps_warmup`` no stage exceeds the base: the original's third does for one
    warm-up epoch, 1.5 times. Without warm-up the rate is the base from the first step on (the original's is 3 times).
    """
    base = settings.learning_rate
    for decay_epoch in settings.decay_epochs:
        if epoch >= decay_epoch:
            base *= settings.decay_factor
    stages = settings.warmup_epochs + 1
    if stages == 1:
        return base
    warmup_steps = num_samples / settings.batch_size * stages
    for quarter in (1, 2, 3):
        if step <= int(warmup_steps * (0.25 * quarter)):
            return base * (min(quarter, stages) if settings.caps_warmup else quarter) / stages
    return base


def temperature(settings: TrainSettings, *, epoch: int) -> float:
    """The temperature of hard routing in one epoch, counted from 0, never below ``temperature_min``.

    Policy 0 falls in a straight line from the highest to the lowest; 1 falls to 1 over the warm-up and then slowly; 2
    starts low, for finetuning, and ends its warm-up at the lowest. (The original's policies 1 and 2 can fall below the
    lowest, even to 0: here they stop there.)
    """
    highest, lowest = settings.temperature_max, settings.temperature_min
    epochs, warmup = settings.epochs, settings.warmup_epochs
    if settings.temperature_policy == 0:
        value = highest - (highest - lowest) * epoch / max(epochs - 1, 1)
    elif settings.temperature_policy == 1:
        if epoch < warmup:
            value = highest - (highest - 1.0) * epoch / warmup
        else:
            value = 1.0 - (epoch - warmup) / max(epochs - warmup, 1)
    elif epoch < warmup:
        value = 1.0 - (epoch - epochs) / (warmup + 1)
    else:
        value = lowest
    return max(value, lowest)
