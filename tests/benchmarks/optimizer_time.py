"""Price of each optimizer, weight average and multiplier: time per step against Keras' Adam in the same loop.

python -m tests.benchmarks.optimizer_time [--models=mlp,cnn] [--steps=300] [--rounds=9]
"""

import argparse

import keras

import optimizers
from tests.benchmarks.method_time import stepper
from tests.benchmarks.step_time import MODELS, loss, source_of, take_turns
from trainer.trainer import Trainer

ADAM = "keras Adam"
OPTIMIZERS = {
    ADAM: lambda: keras.optimizers.Adam(1e-3),
    "keras SGD": lambda: keras.optimizers.SGD(1e-2, momentum=0.9),
    "MomentumSGD": lambda: optimizers.MomentumSGD(1e-2),
    "LARS": lambda: optimizers.LARS(1e-2),
    "LAMB": lambda: optimizers.LAMB(1e-3),
    "ScheduleFreeSGD": lambda: optimizers.ScheduleFreeSGD(1e-1),
    "ScheduleFreeAdamW": lambda: optimizers.ScheduleFreeAdamW(1e-3),
    "LazyAdam": lambda: optimizers.LazyAdam(1e-3),
    "SOAP": lambda: optimizers.SOAP(1e-3),
    "Adam, multipliers": lambda: optimizers.LearningRateMultipliers(keras.optimizers.Adam(1e-3), {"dense.*": 0.5}),
}
AVERAGES = {
    "Adam, EMA": lambda: optimizers.EMA(0.999),
    "Adam, SWA each step": lambda: optimizers.SWA(start=1),
    "Adam, Lookahead": lambda: optimizers.Lookahead(),
}


def contestant(make_model, optimizer=OPTIMIZERS[ADAM], average=None):
    model, inputs = make_model()
    averages = None if average is None else average()
    return stepper(Trainer(model, loss(), optimizers=optimizer(), averages=averages), source_of(inputs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,cnn")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    for name in arguments.models.split(","):
        contestants = {title: contestant(MODELS[name], optimizer=make) for title, make in OPTIMIZERS.items()}
        contestants.update({title: contestant(MODELS[name], average=make) for title, make in AVERAGES.items()})
        take_turns(name, contestants, {ADAM: ADAM}, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
