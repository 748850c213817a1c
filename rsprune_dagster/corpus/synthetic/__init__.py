"""A procedural corpus with ground truth, and pairs of images and masks."""

from rsprune_dagster.corpus.synthetic.corpus import TRUTH, write_corpus
from rsprune_dagster.corpus.synthetic.pairs import COLOURS, write_pairs
from rsprune_dagster.corpus.synthetic.plan import SyntheticPlan
from rsprune_dagster.corpus.synthetic.scenes import SCENES, ground, paint

__all__ = ["COLOURS", "SCENES", "TRUTH", "SyntheticPlan", "ground", "paint", "write_corpus", "write_pairs"]
