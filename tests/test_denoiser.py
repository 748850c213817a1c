"""The denoisers: published sizes, where they attend, and how a DiT begins."""

from pathlib import Path

import pytest
import torch

from rsprune_dagster.diffusion.denoiser import Denoiser, build_denoiser, null_class, read_denoiser


def on_meta(preset: str, kind: str = "unet", *, image_size_px: int = 64, for_latents: bool = False) -> Denoiser:
    """A denoiser without memory for its weights."""
    with torch.device("meta"):
        return build_denoiser(
            preset,
            image_size_px=image_size_px,
            n_scenes=2,
            seed=0,
            kind=kind,
            channels=4 if for_latents else 3,
            for_latents=for_latents,
        )


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 1.1), ("small", 19), ("base", 51), ("xl", 261)])
def test_the_unets_have_their_sizes(preset: str, millions: float) -> None:
    weights = sum(parameter.numel() for parameter in on_meta(preset).parameters())
    assert weights / 1e6 == pytest.approx(millions, rel=0.04)


@pytest.mark.parametrize(("preset", "millions"), [("small", 33), ("base", 130), ("xl", 675)])
def test_the_dits_are_the_published_ones(preset: str, millions: float) -> None:
    """Peebles & Xie 2023, table 1, where all blocks share one embedding of time and class."""
    denoiser = on_meta(preset, "dit", for_latents=True, image_size_px=32)
    shared = {name: each for name, each in denoiser.named_parameters() if ".emb." not in name or "blocks.0." in name}
    assert sum(each.numel() for each in shared.values()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert denoiser.config.patch_size == 2 and on_meta(preset, "dit").config.patch_size == 4


@pytest.mark.parametrize(("preset", "edges"), [("tiny", {8}), ("small", {16, 8}), ("base", {32, 16, 8})])
def test_a_unet_attends_at_its_edges(preset: str, edges: set[int]) -> None:
    config = on_meta(preset, image_size_px=32).config
    attends = [name.startswith("Attn") for name in config.down_block_types]
    assert attends == [name.startswith("Attn") for name in reversed(config.up_block_types)]
    assert {32 >> level for level, here in enumerate(attends) if here} == edges


def test_the_null_class_is_one_more_than_the_scenes() -> None:
    classes = {
        n: build_denoiser("tiny", image_size_px=16, n_scenes=n, seed=0).config.num_class_embeds for n in (1, 2, 5)
    }
    assert classes == {1: None, 2: 3, 5: 6}
    assert null_class(build_denoiser("tiny", image_size_px=16, n_scenes=5, seed=0)) == 5
    assert null_class(on_meta("tiny", for_latents=True)) == null_class(on_meta("tiny", "dit")) == 1000


def test_a_dit_begins_with_adaln_zero_and_drops_no_class(tmp_path: Path) -> None:
    denoiser = build_denoiser("tiny", image_size_px=16, n_scenes=2, seed=0, kind="dit")
    zero = {name for name, each in denoiser.named_parameters() if not each.any()}
    assert zero >= {name for name, _ in denoiser.named_parameters() if name.endswith(".bias")}
    assert zero >= {"proj_out_1.weight", "proj_out_2.weight", "transformer_blocks.3.norm1.linear.weight"}
    block = denoiser.transformer_blocks[0]
    embedders = block.norm1.emb.class_embedder.embedding_table, block.norm1.emb.timestep_embedder.linear_1
    for layer in (*embedders, block.norm1.emb.timestep_embedder.linear_2):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for layer in (block.attn1.to_q, block.ff.net[2], denoiser.pos_embed.proj):  # Xavier: uniform, by both sides' widths
        n_out, n_in = layer.weight.flatten(1).shape
        assert layer.weight.abs().max().item() == pytest.approx((6 / (n_in + n_out)) ** 0.5, rel=0.05)
    denoiser.save_pretrained(tmp_path)
    for each in (denoiser, read_denoiser(tmp_path)):
        assert {one.norm1.emb.class_embedder.dropout_prob for one in each.transformer_blocks} == {0.0}


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_the_seed_alone_decides_the_first_weights(kind: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        denoiser = build_denoiser("tiny", image_size_px=16, n_scenes=2, seed=seed, kind=kind)
        return torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])

    before = torch.random.get_rng_state()
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.random.get_rng_state(), before)
