"What is compared: the nets of the experiments, the table of experiments, and the recipe of each."
import hashlib, inspect, json, sys
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))

import step1, step2, step3, torch
from fastai.callback.tracker import TerminateOnNaNCallback
from fastai.optimizer import SGD
from torch import nn
from torch.nn import functional as F

from models import Model_1, Model_2, Model_3, Model_4, Model_5, Net, conv, count, head, layers

key = ['experiment', 'fold', 'seed']  # a run; fold 0: trained on all training images, evaluated on the test images


# Nets of the experiments. A layer that replaces another is made last: a seed gives all other layers the same weights.

def no_batch_norm():
    "Model_1 without batch norm; its convolutions have a bias instead."
    net = Model_1()
    for i in (0, 1, 3, 4, 6, 7):
        old = net[i][0]
        net[i][0] = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=old.padding)
        net[i][1] = nn.Identity()
    return net

def relu():
    "Model_2 with ReLU instead of SiLU."
    net = Model_2()
    for block in net[1:7]: block[-2] = nn.ReLU()  # dropout is last
    return net

def average_pooling():
    "Model_2 with plain global average pooling."
    net = Model_2()
    net[7] = nn.AdaptiveAvgPool2d(1)
    return net

def large_kernel():
    "Model_2 with step 1's head: one large kernel from the last maps to ten logits."
    net = Model_2()
    net[7] = nn.Conv2d(32, 10, 5)
    net[9] = nn.Identity()
    return net

def pools(layers_later, place=1):
    "Model_2 with each max-pooling moved by `layers_later`, to `place` in that layer (1: after the convolution)."
    net = Model_2()
    for i in (2, 4):
        pool = net[i].pop(1)
        net[i+layers_later].insert(place, pool)
    if layers_later == -1: net[7] = nn.Conv2d(32, 32, 4, groups=32, bias=False)  # the last map is 4×4 then
    return net

class BlurPool(nn.Module):
    """2×2 max-pooling without aliasing: from maps (n, c, w, w), `w` even, to (n, c, w/2, w/2).

    Ordinary 2×2 max-pooling takes every second of the maxima, so its maps change when the image is shifted by a pixel.
    Here the maximum has stride 1, and a blur by [1 2 1]×[1 2 1]/16 goes before the stride of 2 (Zhang 2019, "Making
    Convolutional Networks Shift-Invariant Again", section 3). The maxima have an odd width, so the blur is symmetrical.
    """
    kernel_size,stride = 4,2  # of both together, for `layers`

    def forward(self, x):
        x = F.max_pool2d(x, 2, stride=1)
        line = x.new_tensor([1, 2, 1])/4
        kernel = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])

def blurred(*places):
    "Model_3 with blurred pooling in the layers at `places`."
    net = Model_3()
    for i in places: net[i][1] = BlurPool()
    return net

def uncropped(model=Model_3):
    "`model` on all 28×28 pixels."
    net = model()
    net[0] = nn.Identity()
    net[7] = nn.Conv2d(32, 32, 6, groups=32, bias=False)
    return net

def plain_filters(p=.05):
    "Model_2's build with ordinary convolutions, and fewer channels to keep the budget."
    return Net(
        nn.ZeroPad2d(-2),
        conv(1, 8, pad=0, p=p),
        conv(8, 8, pad=0, pool=nn.MaxPool2d(2), p=p),
        conv(8, 8, p=p),
        conv(8, 16, pool=nn.MaxPool2d(2), p=p),
        conv(16, 16, p=p),
        conv(16, 16, p=p),
        *head(16, 5))


def constant(epochs=step3.epochs, lr=3e-3, **kwargs):
    "Step 3's `train` at a constant learning rate (and beta1), as in steps 1 and 2."
    learn = step3.learner(**kwargs)
    learn.fit(epochs, lr, cbs=TerminateOnNaNCallback())
    return learn

def momentum(epochs=step1.epochs, lr=.1, mom=.9, **kwargs):
    "Step 1's `train` by SGD with momentum `mom`, and no weight decay: fastai's default there (Adam's is 0.01)."
    learn = step1.learner(**kwargs)
    learn.opt_func = partial(SGD, mom=mom)
    learn.fit(epochs, lr, cbs=TerminateOnNaNCallback())
    return learn

step3_constant = SimpleNamespace(**{**vars(step3), 'train': constant})
step1_momentum = SimpleNamespace(**{**vars(step1), 'train': momentum})
still = dict.fromkeys(step3.warp, 0)  # no warp at all

def experiment(step, what='', device='cpu', **arguments):
    "A row of the table: `step`, `arguments` of its `train` that are not the step's own, what they change, in words."
    return step, dict(device=device, **arguments), what

experiments = {
    'step1': experiment(step1),
    'step2': experiment(step2),
    'step3': experiment(step3),
    'step3-again': experiment(step3),  # for the accuracy of nine shifts
    'step3-8epochs': experiment(step3, epochs=8),
    'step3-4epochs': experiment(step3, epochs=4),
    'step3-3epochs': experiment(step3, epochs=3),
    '4epochs-without-average': experiment(step3, epochs=4, average=0),
    'step3-GPU': experiment(step3, device='cuda'),
    'step3-Model_4': experiment(step3, model=Model_4),
    'step3-Model_5': experiment(step3, model=Model_5),

    'step1-without-batch-norm': experiment(step1, 'without batch norm', model=no_batch_norm),
    'step1-half-channels': experiment(step1, 'half the channels', model=partial(Model_1, (4, 4, 4, 6, 4, 4))),
    'step1-twice-channels': experiment(step1, 'twice the channels', model=partial(Model_1, (16, 16, 16, 24, 16, 16))),
    'step1-lr-0.001': experiment(step1, 'a third of the learning rate', lr=1e-3),
    'step1-lr-0.009': experiment(step1, 'three times the learning rate', lr=9e-3),
    'step1-SGD-0.03': experiment(step1_momentum, 'SGD with momentum 0.9 at 0.03 instead of Adam', lr=.03),
    'step1-SGD-0.1': experiment(step1_momentum, 'SGD with momentum 0.9 at 0.1 instead of Adam'),
    'step1-SGD-0.3': experiment(step1_momentum, 'SGD with momentum 0.9 at 0.3 instead of Adam', lr=.3),

    'step2-plain-filters': experiment(step2, 'ordinary convolutions, fewer channels', model=plain_filters),
    'step2-average-pooling': experiment(step2, 'plain global average pooling', model=average_pooling),
    'step2-large-kernel': experiment(step2, 'the large kernel of step 1', model=large_kernel),
    'step2-pool-earlier': experiment(step2, 'pooling one layer earlier', model=partial(pools, -1)),
    'step2-pool-after-SiLU': experiment(step2, 'pooling after batch norm and SiLU', model=partial(pools, 0, 3)),
    'step2-without-crop': experiment(step2, 'all 28×28 pixels', model=partial(uncropped, Model_2)),
    'step2-without-dropout': experiment(step2, 'without dropout', model=Model_3),
    'step2-ReLU': experiment(step2, 'ReLU instead of SiLU', model=relu),

    'constant-0.003': experiment(step3_constant, 'a constant learning rate of 0.003'),
    'constant-0.003-without-average':
        experiment(step3_constant, 'a constant learning rate of 0.003, without the average', average=0),
    'constant-0.006': experiment(step3_constant, 'a constant learning rate of 0.006', lr=6e-3),
    'constant-0.006-without-average':
        experiment(step3_constant, 'a constant learning rate of 0.006, without the average', lr=6e-3, average=0),
    'without-augmentation': experiment(step3, 'without augmentation', warp=still),
    'elastic-only': experiment(step3, 'the elastic distortion only', warp={**still, 'elastic': step3.warp['elastic']}),
    'without-elastic': experiment(step3, 'without the elastic distortion', warp={**step3.warp, 'elastic': 0}),
    'without-average': experiment(step3, 'without the average of the weights', average=0),
    'with-dropout': experiment(step3, 'with the dropout of step 2', model=Model_2),
    'without-crop': experiment(step3, 'without the crop to 24×24', model=uncropped),
    'wd-0.01': experiment(step3, 'weight decay 0.01 instead of 0.1', wd=.01),
    'blurred': experiment(step3, 'both poolings blurred', model=partial(blurred, 2, 4)),
    'blurred-second': experiment(step3, 'the second pooling blurred', model=partial(blurred, 4)),
}

# Small nets, to find the smallest one that is good enough: filters of the six layers.
for filters in product([2], [2], [2, 3], [3, 4], [3, 4, 5], [3, 4]):
    small = partial(Model_2, filters, p=0.)
    name = 'filters-' + ''.join(map(str, filters))
    if count(small()) <= 2700: experiments[name] = experiment(step3, model=small)


def digest(net):
    "Eight characters for the build of `net`: its layers, and the names and shapes of its weights."
    weights = {name: tuple(weight.shape) for name,weight in net.state_dict().items()}
    return hashlib.md5(f'{layers(net)} {weights}'.encode(), usedforsecurity=False).hexdigest()[:8]

def recipe(name, data='mnist'):
    """All that makes experiment `name` what it is, as JSON: the arguments of its step's `learner` and `train`, and a
    digest of the net."""
    step,changed,_ = experiments[name]
    arguments = inspect.signature(step.learner).parameters | inspect.signature(step.train).parameters
    found = {argument: its.default for argument,its in arguments.items()} | changed
    for other in ('seed', 'pretrained', 'cbs', 'kwargs'): found.pop(other, None)
    net = found['model']()
    found['model'] = f'{type(net).__name__} {digest(net)}'
    if data == 'digits': found['data'] = data  # a folder holds MNIST, or is refused
    return json.dumps(found)
