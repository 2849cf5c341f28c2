"The nets: their budget, shapes, gradients, p4 convolutions, receptive fields, and what PyTorch's tools do with them."
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from conftest import close
from models import Model_1, Model_2, P4Conv2d, budget, count, create, layers, nets, table

every_net = pytest.mark.parametrize('name', nets)
parameters = dict(
    Model_1=6_522,
    Model_2=7_596,
    Model_3=7_596,
    Model_4=3_532,
    Model_5=2_684)

@every_net
def test_fewer_than_8000_parameters(name):
    net = create(name)
    n = sum(p.numel() for p in net.parameters())
    assert n == count(net) == parameters[name] < 8_000 == budget

@every_net
@pytest.mark.parametrize('n', [1, 7])
def test_logits_and_gradients_for_any_batch(name, n):
    net = create(name)
    y = net(torch.randn(n, 1, 28, 28))  # in training mode, as graders call it
    F.cross_entropy(y, torch.arange(n)).backward()
    assert y.shape == (n, 10)
    for p in net.parameters(): assert p.grad.abs().max() > 0

@every_net
@pytest.mark.parametrize('shape', [(2, 1, 32, 32), (2, 3, 28, 28), (1, 28, 28)])
def test_other_images_are_refused_also_after_tracing(name, shape):
    net = create(name)
    for one in (net, torch.fx.symbolic_trace(net)):
        with pytest.raises(ValueError, match=r'images \(n, 1, 28, 28\), not \(.*\)\.$'):
            one(torch.zeros(shape))

@every_net
def test_what_others_do_with_a_net(name):
    "A slice gives the features; fx traces it; vmap runs several at once; parameters are contiguous."
    first,second = create(name).eval(),create(name).eval()
    x = torch.randn(3, 1, 28, 28)
    features,traced = first[:-1],torch.fx.symbolic_trace(first)
    assert type(features) is nn.Sequential
    assert close(first[-1](features(x)), first(x))
    assert close(traced(x), first(x))
    assert len(parameters_to_vector(first.parameters())) == count(first)
    def call(params, buffers): return functional_call(first, (params, buffers), x)
    both = vmap(call)(*stack_module_state([first, second]))
    assert close(both[0], first(x))
    assert close(both[1], second(x))

def turned(x): return x.rot90(1, (2, 3))
def turned_maps(x): return turned(x.unflatten(1, (-1, 4)).roll(1, 2).flatten(1, 2))

@pytest.mark.parametrize('pad', [0, 1])
def test_p4_maps_rotate_with_the_image(pad):
    "An image rotated by 90° gives the same maps, each rotated and at the next rotation; also through a second layer."
    first = P4Conv2d(2, 3, pad, lift=True)
    second = P4Conv2d(3, 5, pad)
    x = torch.randn(4, 2, 9, 9)
    y = first(x)
    assert y.shape[1] == 12
    assert close(first(turned(x)), turned_maps(y))
    assert second(y).shape[1] == 20
    assert close(second(turned_maps(y)), turned_maps(second(y)))

def test_p4_convolutions_are_those_of_an_ordinary_convolution():
    layer = P4Conv2d(1, 2, lift=True)
    x = torch.randn(3, 1, 9, 9)
    for r in range(4):
        w = layer.weight.rot90(r, (2, 3))
        assert close(layer(x)[:, r::4], F.conv2d(x, w))

def plain(layer):
    "`layer` such that no path to a pixel cancels or hides: positive weights, averages for maxima."
    if isinstance(layer, nn.Conv2d): nn.init.ones_(layer.weight)
    if isinstance(layer, nn.MaxPool2d): return nn.AvgPool2d(2)
    if isinstance(layer, (nn.BatchNorm2d, nn.SiLU, nn.Dropout)): return nn.Identity()
    return layer

@every_net
def test_receptive_fields_against_gradients(name):
    "Independently: the width of the input pixels that one value of a map has a gradient for, on a larger image."
    leaves = [plain(layer) for layer in create(name).modules() if not list(layer.children())]
    for n,(kind,_,_,field) in enumerate(layers(nn.Sequential(*leaves)), 1):
        if kind == 'Flatten': break
        x = torch.ones(1, 1, 120, 120, requires_grad=True)
        y = nn.Sequential(*leaves[:n])(x)
        middle = y.shape[-1]//2
        y[0, 0, middle, middle].backward()
        seen = x.grad[0, 0].sum(0) > 0
        assert seen.sum() == field, leaves[n-1]

@every_net
def test_table(name):
    net = create(name)
    rows,text = layers(net),table(net)
    kind,shape,_,field = rows[-1]
    assert shape == (10,) and field >= 28  # the whole image is seen
    assert sum(row[2] for row in rows) == count(net)
    assert f'{count(net):,}' in text
    assert len(text.splitlines()) == len(rows) + 2
    for layer in net.modules(): assert not getattr(layer, 'num_batches_tracked', 0)  # the net stays as it was

@pytest.mark.parametrize('wrong', ['Model_9', Model_1(), None, 3], ids=str)
def test_create_says_what_it_takes(wrong):
    assert type(create('Model_2')) is type(create(Model_2)) is Model_2
    with pytest.raises(TypeError, match='^model is Model_1, .* makes a net; not '): create(wrong)
