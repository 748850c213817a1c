"""A procedural corpus with ground truth."""

from rsprune_dagster.corpus.synthetic.corpus import TRUTH, write_corpus
from rsprune_dagster.corpus.synthetic.plan import SyntheticPlan
from rsprune_dagster.corpus.synthetic.scenes import SCENES, ground, paint

__all__ = ["SCENES", "TRUTH", "SyntheticPlan", "ground", "paint", "write_corpus"]
