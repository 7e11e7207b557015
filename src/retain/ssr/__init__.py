"""The API of the document on self-synthesized rehearsal (SSR 5, 6), over the parts that `retain run` is made of.

What the document's code leaves open or would do wrong is done as in a run: answers are drawn in batches, filters end
where the yield stays low, the model learns to write inputs too (`generator_weight`). As in its code, and unlike in a
run, synthetic samples take the place of new ones in a batch, and the scheduler counts the steps of all tasks.
"""

from retain.ssr.curriculum import CurriculumScheduler
from retain.ssr.examples import SyntheticExample
from retain.ssr.model import SSRModel
from retain.ssr.synthesis import QualityFilter, SynthesisModel

__all__ = ["CurriculumScheduler", "QualityFilter", "SSRModel", "SynthesisModel", "SyntheticExample"]
