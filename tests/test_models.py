"The nets: their budget, shapes, gradients, p4 convolutions, receptive fields, and what PyTorch's tools do with them."
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from conftest import close
from models import Model_2, P4Conv2d, budget, count, create, layers, nets, table

every_net = pytest.mark.parametrize('name', nets)

@every_net
def test_fewer_than_8000_parameters(name):
    net = create(name)
    assert count(net) == sum(p.numel() for p in net.parameters())
    assert count(net) < budget == 8_000

@every_net
@pytest.mark.parametrize('n', [1, 7])
def test_logits_and_gradients_for_any_batch(name, n):
    net = create(name)
    y = net(torch.randn(n, 1, 28, 28))  # in training mode, as graders call it
    loss = F.cross_entropy(y, torch.arange(n))
    loss.backward()
    assert y.shape == (n, 10)
    for p in net.parameters():
        assert p.grad.any()

@pytest.mark.parametrize('shape', [(1, 32, 32), (3, 28, 28)])
@pytest.mark.parametrize('use', [nn.Identity(), torch.fx.symbolic_trace])
def test_other_images_are_refused_also_after_tracing(shape, use):
    with pytest.raises(ValueError, match=r'images \(n, 1, 28, 28\), not \(.*\)\.$'):
        use(Model_2())(torch.zeros(2, *shape))

x = torch.randn(3, 1, 28, 28)

@every_net
def test_what_others_do_with_a_net(name):
    "A slice gives the features; fx traces it; vmap runs several at once; parameters are contiguous."
    first = create(name).eval()
    second = create(name).eval()
    assert close(first[-1](first[:-1](x)), first(x))
    assert close(torch.fx.symbolic_trace(first)(x), first(x))
    assert len(parameters_to_vector(first.parameters())) == count(first)
    def call(*state): return functional_call(first, state, x)
    states = stack_module_state([first, second])
    both = vmap(call)(*states)
    assert close(both, torch.stack([first(x), second(x)]))

def turned(x): return x.rot90(1, (2, 3))
def turned_maps(x):
    next_rotation = x.unflatten(1, (-1, 4)).roll(1, 2)
    return turned(next_rotation.flatten(1, 2))

@pytest.mark.parametrize('pad', [0, 1])
def test_p4_maps_rotate_with_the_image(pad):
    "An image rotated by 90° gives the same maps, each rotated and at the next rotation; also through a second layer."
    first = P4Conv2d(1, 3, pad, lift=True)
    second = P4Conv2d(3, 5, pad)
    y = first(x)
    assert close(y[:, ::4], F.conv2d(x, first.weight, padding=pad))
    assert close(first(turned(x)), turned_maps(y))
    assert close(second(turned_maps(y)), turned_maps(second(y)))
    assert second(y).shape[1] == second.out_channels == 20

def plain(layer):
    "`layer` such that no path to a pixel cancels or hides: positive weights, averages for maxima."
    if isinstance(layer, nn.Conv2d):
        nn.init.ones_(layer.weight)
    if isinstance(layer, nn.MaxPool2d):
        return nn.AvgPool2d(2)
    return layer

@every_net
def test_receptive_fields_against_gradients(name):
    "Independently: the width of the input pixels that one value of a map has a gradient for, on a larger image."
    net = create(name).eval()
    leaves = [plain(layer) for layer in net.modules() if not list(layer.children())]
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
    rows = layers(net)
    assert rows[-1][1] == (10,)
    assert rows[-1][3] >= 28  # the whole image is seen
    assert sum(row[2] for row in rows) == count(net)
    assert f'{count(net):,}' in table(net)
    for buffer in net.buffers():
        assert buffer.unique() in (0, 1)  # batch norm's statistics are as they were

class OwnForward(nn.Module):
    "As tutorials write a net: a function pools, before `first` by `n`; `again` is called twice, with a residual path."
    def __init__(self, n=1):
        super().__init__()
        self.n = n
        self.first = nn.Conv2d(1, 10, 5)
        self.again = nn.Conv2d(10, 10, 3, padding=1)
    def forward(self, x):
        x = self.first(F.max_pool2d(x, self.n))
        x = F.max_pool2d(x, 2)
        return x + self.again(self.again(x))

def column(i, net):
    rows = layers(net)
    return [row[i] for row in rows]

def test_a_table_says_only_what_it_knows():
    assert column(1, OwnForward()) == [(10, 24, 24), (10, 12, 12), (10, 12, 12)]
    assert column(3, OwnForward()) == [5, None, None]
    assert column(3, OwnForward(2)) == [None, None, None]
    assert column(3, nn.Sequential(nn.Flatten(), nn.Linear(784, 10))) == [28, 28]
    assert column(3, nn.Conv2d(1, 1, 3, dilation=2)) == [5]
    assert table(OwnForward()).count('–') == 2
    assert '7,850' in table(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)))

@pytest.mark.parametrize('wrong', ['Model_9', Model_2()], ids=str)
def test_create_says_what_it_takes(wrong):
    with pytest.raises(TypeError, match='^model is Model_1, .* makes a net; not '): create(wrong)
