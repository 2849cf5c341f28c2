"The nets: their budget, shapes, gradients, and the receptive fields that `layers` computes."
import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models import Model_1, Model_2, Model_3, Model_4, budget, count, layers, table

nets = [v for k,v in vars(models).items() if k.startswith('Model_')]


def test_every_model_is_found(): assert [m.__name__ for m in nets] == [f'Model_{i+1}' for i in range(len(nets))] and len(nets) >= 2

@pytest.mark.parametrize('net', nets)
def test_fewer_than_8000_parameters(net):
    assert budget == 8_000
    assert sum(p.numel() for p in net().parameters()) == count(net()) < 8_000

@pytest.mark.parametrize('net, n', [(Model_1, 6_522), (Model_2, 7_906), (Model_3, 7_722), (Model_4, 3_690)])
def test_exact_count(net, n): assert count(net()) == n

@pytest.mark.parametrize('net', nets)
def test_logits_for_any_batch(net):
    for n in (2, 7): assert net()(torch.randn(n, 1, 28, 28)).shape == (n, 10)
    assert net().eval()(torch.randn(1, 1, 28, 28)).shape == (1, 10)

@pytest.mark.parametrize('net', nets)
def test_gradients_reach_every_parameter(net):
    net = net()
    F.cross_entropy(net(torch.randn(32, 1, 28, 28)), torch.arange(32) % 10).backward()
    for name,p in net.named_parameters(): assert p.grad is not None and p.grad.abs().max() > 0, name

@pytest.mark.parametrize('net', nets)
def test_a_batch_of_images_can_be_learnt_by_heart(net):
    torch.manual_seed(0)
    net,x,y = net(),torch.randn(64, 1, 28, 28),torch.arange(64) % 10
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    assert (net(x).argmax(1) == y).float().mean() > .95


def fields(*ls): return [row[3] for row in layers(nn.Sequential(*ls))]

@pytest.mark.parametrize('ls, want', [
    ([nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)], [3, 5]),
    ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3)], [3, 4, 8]),
    ([nn.Conv2d(1, 2, 5, stride=2), nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)], [5, 9, 9, 9]),
    ([nn.Conv2d(1, 2, 3, dilation=2), nn.Conv2d(2, 2, 3)], [5, 7]),
    # whatever gathers the whole 28×28 map depends on every pixel of it
    ([nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2*28*28, 10)], [1, 28, 28]),
    ([nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()], [3, 30, 30]),
])
def test_receptive_fields_of_known_nets(ls, want): assert fields(*ls) == want

@pytest.mark.parametrize('net', nets)
def test_receptive_fields_against_gradients(net):
    "Independently: the width of the input pixels that one value in the middle of a map has a gradient for, on an image large enough."
    parts = [m for m in net().modules() if not list(m.children())]
    parts = parts[:[isinstance(m, nn.Flatten) for m in parts].index(True)]
    for i,m in enumerate(parts):  # all weights positive, averages for maxima: so that no path cancels or hides
        if isinstance(m, nn.Conv2d): nn.init.ones_(m.weight)
        if isinstance(m, nn.MaxPool2d): parts[i] = nn.AvgPool2d(2)
        if isinstance(m, nn.BatchNorm2d): parts[i] = nn.Identity()
    for i,want in enumerate(fields(*parts)):
        x = torch.ones(1, 1, 120, 120, requires_grad=True)
        y = nn.Sequential(*parts[:i+1])(x)
        y[0, 0, y.shape[2]//2, y.shape[3]//2].backward()
        assert int((x.grad[0, 0].abs().sum(0) > 0).sum()) == want, parts[i]

@pytest.mark.parametrize('net', nets)
def test_table(net):
    rows,text = layers(net()),table(net())
    assert sum(r[2] for r in rows) == count(net()) and rows[-1][1] == (10,)
    assert rows[-1][3] >= 28  # the whole image is seen
    assert f'{count(net()):,}' in text and len(text.splitlines()) == len(rows) + 2

def test_layers_leaves_the_net_as_it_was():
    net = Model_2()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    layers(net)
    assert net.training and not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())

def test_every_model_is_documented():
    for o in (*nets, models.conv, models.separable, models.head, count, layers, table): assert inspect.getdoc(o)
