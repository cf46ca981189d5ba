"""Activation checkpointing: the same gradients to the bit, from fewer tensors kept."""

import pytest
import tiny
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from pipeline.config.schema_model import DiTConfig, KLAutoencoderConfig, SimpleUNetConfig, UNetConfig
from pipeline.models.blocks import blocks_of, recompute_activations
from pipeline.models.build import build_network
from pipeline.runtime.run_dir import create_run, existing_run
from pipeline.train import loop

UNET = UNetConfig(kind="unet", width=8, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, groups=4)
DENOISERS = {  # and how many blocks each has
    "unet": (UNET.model_copy(update={"dropout": 0.3}), 10 + 4),
    "unet_conv": (UNET.model_copy(update={"resample": "conv", "scale_shift": False}), 8 + 4),
    "unet_concatenated": (UNET.model_copy(update={"concat_channels": 3}), 10 + 4),
    "simple_unet": (SimpleUNetConfig(kind="simple_unet", width=8, multipliers=(1, 2), attention=(4,), heads=1), 4 + 1),
    "dit": (DiTConfig(kind="dit", width=32, depth=3, heads=2, dropout=0.3), 3),
}


def network_of(cfg, *, recompute):
    torch.manual_seed(0)
    network = build_network(cfg, shape=(1, 8, 8), classes=3).train()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # many start at zero
    if recompute:
        recompute_activations(network)
    return network


def kept_and_gradients(network, loss):
    """Bytes that the forward pass leaves for the backward pass, weights aside, and what comes of it."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(network)
    value.backward()
    return sum(kept.values()), {name: p.grad for name, p in network.named_parameters()}


def assert_same_from_less(cfg, loss, *, share):
    plain, expected = kept_and_gradients(network_of(cfg, recompute=False), loss)
    fewer, found = kept_and_gradients(network_of(cfg, recompute=True), loss)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert fewer < share * plain


@pytest.mark.parametrize("name", DENOISERS)
def test_gradients_of_denoisers_are_the_same_from_fewer_tensors(name):
    cfg, number = DENOISERS[name]
    assert len(blocks_of(network_of(cfg, recompute=False))) == number
    x, noise, labels = torch.randn(4, 1, 8, 8), torch.linspace(-1, 1, 4), torch.arange(4) % 3

    def loss(network):
        condition = labels if network.conditional else None
        return network(x, noise, condition, sample_indices=torch.arange(4)).square().mean()

    assert_same_from_less(cfg, loss, share=0.5)


def test_the_compiler_sees_one_graph_and_computes_the_blocks_again():
    """train.compile=true beside it. The forward graph hands over less: its outputs are what is kept."""
    x, noise, labels, sample_indices = (
        torch.randn(4, 1, 8, 8),
        torch.linspace(-1, 1, 4),
        torch.arange(4) % 3,
        torch.arange(4),
    )
    kept, found = [], []
    for recompute in (False, True):
        torch._dynamo.reset()
        network = network_of(DENOISERS["unet"][0], recompute=recompute)

        def count(graph, _):
            (output,) = graph.graph.find_nodes(op="output")
            kept.append(sum(node.op != "placeholder" for node in output.all_input_nodes))
            return make_boxed_func(graph.forward)

        backend = aot_autograd(fw_compiler=count, bw_compiler=lambda graph, _: make_boxed_func(graph.forward))
        compiled = torch.compile(network, backend=backend, fullgraph=True)
        compiled(x, noise, labels, sample_indices=sample_indices).square().mean().backward()
        found.append({name: p.grad for name, p in network.named_parameters()})
    for name, expected in found[0].items():
        assert torch.allclose(found[1][name], expected, rtol=1e-4, atol=1e-6)
    assert kept[1] < kept[0]


def test_gradients_of_autoencoders_are_the_same_from_fewer_tensors():
    cfg = KLAutoencoderConfig(kind="kl_autoencoder", width=8, multipliers=(1, 2), blocks=1, groups=4)
    x = torch.randn(4, 1, 8, 8)

    def loss(network):
        return network.decode(network.encode(x).mean).square().mean()

    assert_same_from_less(cfg, loss, share=0.7)


@pytest.mark.parametrize("model", [{**tiny.UNET, "dropout": 0.1}, tiny.AUTOENCODER], ids=lambda model: model["kind"])
def test_training_is_the_same_to_the_bit(tmp_path, model):
    """The autoencoder's adaptive weight takes gradients through the blocks before the step does."""
    steps = {"duration": "4 steps", "checkpoint_every": "4 steps"}
    found = []
    for recompute in (False, True):
        cfg = tiny.config(tmp_path, name=f"{recompute}", model=model, activation_checkpointing=recompute, **steps)
        tiny.prepare(cfg)
        run = create_run(cfg)
        assert loop.train(cfg, run) == 0
        found.append(tiny.fingerprint(run, 4))
    assert found[0] == found[1]


def test_a_run_may_go_on_with_less_memory(tmp_path):
    run = create_run(tiny.config(tmp_path))
    assert existing_run([str(run.path), "train.activation_checkpointing=true"])[1].train.activation_checkpointing
