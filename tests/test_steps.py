"The steps: learner, training, repeatability, the average of the weights, fastai's own tools, the command line."
import os, re
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, FetchPredsCallback
from torch import nn

import data, report, step1, step2, step3
from conftest import command
from models import Model_3, count, nets, table

every_step = pytest.mark.parametrize('step', [step1, step2, step3], ids=report.step_name)

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

def weights(net): return torch.cat([v.flatten() for v in net.state_dict().values() if v.is_floating_point()])
def same(a, b): return torch.equal(weights(a), weights(b))

@every_step
def test_text(step):
    _,target,_,_ = re.split(r'\n(?:Target|Result|Analysis)\n', step.__doc__)
    assert f'{step.target:.2%}' in target

@every_step
def test_a_learner_changes_with_the_seed(step):
    first,other = (step.learner(data='digits', seed=seed).model for seed in (0, 1))
    assert not same(first, other)

@every_step
def test_trains_on_the_small_digits(step):
    n = 12 if step is step3 else 6  # the average needs some epochs to forget the untrained net
    learn = step.train(epochs=n, data='digits', seed=3)
    rows = report.history(learn)
    assert list(rows) == ['train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy']
    assert rows.valid_accuracy[n] > .9
    assert [*learn.validate()] == pytest.approx([rows.valid_loss[n], rows.valid_accuracy[n]], abs=1e-4)

def test_schedules():
    first,second,third = (step.train(epochs=3, data='digits', bs=200) for step in (step1, step2, step3))
    assert third.opt.hypers[0]['wd'] == step3.wd
    assert set(first.recorder.lrs) == {step1.lr}
    assert set(second.recorder.lrs) == {step2.lr}
    rates = third.recorder.lrs
    assert max(rates) == pytest.approx(step3.lr, rel=.05)
    assert rates[-1] < step3.lr/30
    assert 1 <= rates.index(max(rates)) <= 3

class Unusual(nn.Module):
    "`view` after a convolution, a lazy layer, one weight in two layers; a buffer of integers, which no mean may touch."
    def __init__(self):
        super().__init__()
        self.first,self.again = nn.Conv2d(1, 1, 3),nn.Conv2d(1, 1, 3)
        self.again.weight = self.first.weight
        self.last = nn.LazyLinear(10)
        self.register_buffer('order', torch.arange(9).flip(0))
    def forward(self, x):
        x = self.again(self.first(x))
        return self.last(x.view(len(x), -1))

@every_step
def test_any_net_trains(step):
    learn = step.train(epochs=1, data='digits', model=Unusual)
    assert learn.model.order.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]

class Watch(Callback):
    "Computes the average by hand, and compares."
    order = 1000
    n = 0
    def __init__(self, part): self.part = part
    def after_batch(self):
        if not self.training: return
        self.n += 1
        now = weights(self.model)
        if self.n == 1 or not self.part: self.mean = now
        self.mean = self.mean.lerp(now, self.part/(self.n + self.part))
    def before_validate(self): assert self.is_mean(self.model)
    def after_epoch(self): assert self.is_mean(self.model)  # where `SaveModelCallback` saves
    def is_mean(self, net): return torch.allclose(weights(net), self.mean, atol=1e-5)

@pytest.mark.parametrize('part, model', [(step3.average, Model_3), (2, Unusual), (0, Model_3)])
def test_the_average_is_validated_and_left_in_the_net_at_the_end(part, model):
    "Without an average these are the training weights."
    watch = Watch(part)
    learn = step3.train(epochs=3, data='digits', cbs=watch, average=part, model=model)
    assert watch.is_mean(learn.model)

class Peek(Callback):
    "Validates once more, inside a fit."
    order = 1000
    def __init__(self, event): setattr(self, event, lambda: self.learn.get_preds(inner=True))

def test_a_validation_inside_a_fit_leaves_the_training_as_it_is():
    def train(cbs): return step3.train(epochs=2, data='digits', warp={}, cbs=cbs)  # a validation moves random draws
    plain = train(None)
    for inner in (Peek('before_epoch'), Peek('after_train'), Peek('after_epoch'), FetchPredsCallback()):
        learn = train(inner)
        assert learn.recorder.losses == plain.recorder.losses
        assert same(learn.model, plain.model)

class Interrupt(Callback):
    def before_batch(self):
        if not self.training: raise KeyboardInterrupt

def test_after_an_interrupted_validation_the_net_is_what_it_seems_to_be():
    learn,other = step3.learner(data='digits'),step3.learner(data='digits', seed=1)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Interrupt())
    learn.model.load_state_dict(other.model.state_dict())
    learn.validate()
    assert same(learn.model, other.model)

def test_what_fastai_looks_at_stays_as_it_is():
    learn = step3.learner(data='digits')
    before = weights(learn.model)
    assert f'Total params: {count(learn.model):,}' in str(learn.summary())
    learn.get_preds()
    learn.lr_find(end_lr=1e20, num_it=20, stop_div=False, suggest_funcs=(), show_plot=False)  # through NaN losses
    assert torch.equal(weights(learn.model), before)

@pytest.mark.parametrize('accuracies, status, words', [
    ([.5, .994, .995, .994], 0, 'met'),
    ([.999, .9939, .999, .999], 1, 'MISSED'),
    ([.999]*2, 0, 'not judged'),
    ([.1]*16, 0, 'not judged')])
def test_verdict(accuracies, status, words):
    got,said = report.verdict(pd.DataFrame(dict(valid_accuracy=accuracies)), .994)
    assert got == status
    assert words in said

files = ['confusion.png', 'curves.png', 'history.csv', 'samples.png', 'top_losses.png', 'weights.pth']

def check_run(step, out):
    "What a run of two epochs with seed 1 on the small digits prints and saves; once more it is the same, to the bit."
    name = report.step_name(step)
    model = f'Model_{name[-1]}'
    learn = step.train(epochs=2, data='digits', seed=1)
    rows = report.history(learn)
    with learn.dls.train_ds.set_split_idx(1): _,clean = learn.validate(0)
    said = [table(learn.model), step.__doc__.strip(), 'This run (changed: epochs2, seed1;',
            f'{count(nets[model]()):,} ({model})', f'2 epochs, batches of 256, learning rate {step.lr}, seed 1',
            f'train        {clean:.2%} ', 'last 2 of 2', 'verdict      not judged']
    for words in said: assert words in out
    assert re.findall(r'^ *(\d+) +\d+\.\d{4} ', out, re.M) == ['1', '2']  # the epochs
    assert '\r' not in out
    folder, = Path('runs').iterdir()
    assert folder.name == f'{name}-epochs2-seed1-not-MNIST'
    assert sorted(os.listdir(folder)) == files
    assert sorted(re.findall(rf'saved {folder}/(.*)', out)) == files
    assert pd.read_csv(folder/'history.csv', index_col='epoch').equals(rows)
    saved = torch.load(folder/'weights.pth', weights_only=True)
    for key,value in learn.model.state_dict().items(): assert torch.equal(saved[key], value)

def test_command_line(run):
    done = run(command('step3.py', '--epochs', '2', '--seed', '1'))
    assert done.returncode == 0
    assert done.stderr == ''
    check_run(step3, done.stdout)
    for picture in Path('runs').rglob('*.png'): assert picture.read_bytes()[:4] == b'\x89PNG'

@pytest.mark.parametrize('step', [step1, step2], ids=report.step_name)
def test_command(step, capsys, no_pictures):
    assert step.main(epochs=2, data='digits', seed=1) == 0
    check_run(step, capsys.readouterr().out)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_cuda():
    learn,again = (step3.train(epochs=2, data='digits') for _ in range(2))
    assert learn.dls.train_ds.x.is_cuda
    assert report.history(learn).equals(report.history(again))

@pytest.mark.mnist
def test_a_missed_target_is_exit_status_1(monkeypatch, capsys, no_pictures):
    monkeypatch.setattr(step1, 'target', 1)
    assert step1.main(epochs=3, data='mnist') == 1
    assert 'TARGET MISSED' in capsys.readouterr().out
