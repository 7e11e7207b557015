"""The named strategies: what each does to losses and gradients. What is replayed when stands in `presets`."""

from retain.config import Config
from retain.extending import is_import_path, named
from retain.presets import Resolved
from retain.strategies.agem import AGem
from retain.strategies.base import Context, Strategy
from retain.strategies.composition import Combined
from retain.strategies.der import DarkExperienceReplay
from retain.strategies.ewc import Ewc
from retain.strategies.gem import Gem
from retain.strategies.l2 import L2
from retain.strategies.learn_to_write import LearnToWrite
from retain.strategies.lwf import LearningWithoutForgetting
from retain.strategies.o_lora import OLora
from retain.strategies.si import SynapticIntelligence

STRATEGIES: dict[str, type[Strategy]] = {
    "o-lora": OLora,
    "osf": Strategy,  # all of it is the kind of adapter, see `model.load_model`
    "si": SynapticIntelligence,
    "l2": L2,
    "ewc": Ewc,
    "lwf": LearningWithoutForgetting,
    "der++": DarkExperienceReplay,
    "gem": Gem,
    "agem": AGem,
}


def build(chosen: Resolved, context: Context, config: Config) -> Combined:
    """The strategies of a run for one stage, as one."""
    parts: dict[str, Strategy] = {}
    if chosen.source:
        parts["synthesis"] = LearnToWrite(context, config.synthesis, config.curriculum.lambda_quality)
    for name, options in chosen.regularizers:
        strategy = named(name) if is_import_path(name) else STRATEGIES[name]
        parts[name] = strategy(options, context)
    return Combined(parts, context)
