"""How much the subset hangs on what was chosen: the keep fraction and the seed."""

from rsprune_dagster.pruning.sensitivity import KeptAtFractions, SeedSensitivity
from rsprune_dagster.viz.blocks import Bar, Cell, Column, Heat, Table
from rsprune_dagster.viz.formatting import NBSP, count, name, share

MAX_SCENES = 30


def fraction_table(kept: KeptAtFractions, keep_fraction: float) -> Table:
    """Scenes by keep fractions."""
    columns = [
        Column("Scene"),
        Column("Candidates", numeric=True, minor=True),
        *(
            Column(f"{100 * fraction:g}{NBSP}%" + (", this" if fraction == keep_fraction else ""), numeric=True)
            for fraction in kept.fractions
        ),
    ]
    rows: list[list[str | Cell]] = [
        [name(scene), count(n), *(Heat(count(n_kept), n_kept / max(n, 1)) for n_kept in row)]
        for scene, n, row in zip(kept.scenes, kept.n_candidates, kept.n_kept, strict=True)
    ]
    sums = [sum(n_kept[i] for n_kept in kept.n_kept) for i in range(len(kept.fractions))]
    shown = f" The {MAX_SCENES} largest of {count(len(rows))} scenes." if len(rows) > MAX_SCENES else ""
    caption = f"Tiles kept of each scene at each keep fraction; the darker, the more of the scene's candidates.{shown}"
    total = ("all", count(sum(kept.n_candidates)), *(count(n) for n in sums))
    return Table("Other keep fractions", caption, columns, rows[:MAX_SCENES], total)


def seed_table(seeds: SeedSensitivity, seed: int) -> Table:
    """The share of the subset that other seeds keep too."""
    rows = [(f"{overlap.seed}", Bar(share(overlap.shared), overlap.shared, 1.0)) for overlap in seeds.overlaps]
    chance = seeds.n_kept / max(seeds.n_sampled, 1)
    rows.append(("two random draws", Bar(share(chance), chance, 1.0)))
    of = (
        "all candidates"
        if seeds.n_sampled == seeds.n_candidates
        else f"{count(seeds.n_sampled)} of {count(seeds.n_candidates)} candidates, evenly drawn to bound the cost"
    )
    caption = (
        f"Clustered and ranked again with other seeds, on {of}: the share of the {count(seeds.n_kept)} tiles that seed "
        f"{seed} keeps and the other seed keeps too.{_remark(seeds)}"
    )
    return Table("Other seeds", caption, [Column("Seed"), Column("Kept by both")], rows, narrow=True)


def _remark(seeds: SeedSensitivity) -> str:
    if all(overlap.shared == 1 for overlap in seeds.overlaps):
        return " The seed changes nothing here: neither the strata nor the order inside them is drawn at random."
    return " Tiles that look alike may stand in for each other, so a low share need not mean a different subset."
