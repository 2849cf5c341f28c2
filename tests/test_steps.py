"The steps: learner, training, repeatability, the EMA, fastai's own tools, the command line, a terminal, a notebook."
import os, re

import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, FetchPredsCallback, SaveModelCallback, hook_output
from torch import nn

import data, report, step1, step2, step3
from models import Model_1, Model_2, Model_3, count, create, nets, table

steps = {'step1': step1, 'step2': step2, 'step3': step3}
step_nets = {'step1': Model_1, 'step2': Model_2, 'step3': Model_3}
every_step = pytest.mark.parametrize('step', steps)

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

def weights(net): return torch.cat([v.flatten() for v in net.state_dict().values() if v.is_floating_point()])
def same(a, b): return torch.equal(weights(a), weights(b))

@every_step
def test_text(step):
    text = steps[step].__doc__
    target,result,analysis = re.split(r'\nResult\n|\nAnalysis\n', text)
    assert '\nTarget\n' in target and f'{steps[step].target:.2%}' in target
    recorded,this_run = result.splitlines()
    assert recorded.startswith('    recorded: ') and this_run == '    this run: {this_run}'
    assert len(analysis.splitlines()) <= 16
    assert max(map(len, text.splitlines())) <= 120

@every_step
def test_learner_is_untrained_and_changes_with_the_seed_alone(step):
    first,again,other = (steps[step].learner(data='digits', seed=seed).model for seed in (0, 0, 1))
    assert type(first) is step_nets[step]
    assert same(first, again) and not same(first, other)

@every_step
def test_trains_on_the_small_digits_and_again_to_the_same_bits(step):
    n = 12 if step == 'step3' else 6  # the EMA needs some epochs to forget the untrained net
    learn,again = (steps[step].train(epochs=n, data='digits', seed=3) for _ in range(2))
    rows = report.history(learn)
    assert list(rows) == ['train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy']
    assert rows.index.tolist() == [*range(1, n+1)]
    assert rows.valid_accuracy[n] > .9
    assert rows.train_loss[n] < rows.train_loss[1]
    assert rows.equals(report.history(again))
    assert same(learn.model, again.model)
    loss,accuracy = learn.validate()  # the rows say what the net does
    assert accuracy == pytest.approx(rows.valid_accuracy[n], abs=1e-5)
    assert loss == pytest.approx(rows.valid_loss[n], abs=1e-4)

def test_schedules():
    first,second,third = (step.train(epochs=3, data='digits', bs=200) for step in steps.values())
    assert third.dls.bs == 200 and str(third.model_dir) == 'runs'
    assert third.opt.hypers[0]['wd'] == step3.wd
    assert set(first.recorder.lrs) == {step1.lr}
    assert set(second.recorder.lrs) == {step2.lr}
    rates = third.recorder.lrs
    peak = max(rates)
    assert peak == pytest.approx(step3.lr, rel=.05)
    assert rates[-1] < step3.lr/30
    assert 1 <= rates.index(peak) <= 3

class Tutorial(nn.Module):
    "A tutorial's net: `view` after a convolution, a lazy layer; and a buffer of integers, which no mean may touch."
    def __init__(self):
        super().__init__()
        self.conv,self.linear = nn.Conv2d(1, 4, 3),nn.LazyLinear(10)
        self.register_buffer('order', torch.arange(9).flip(0))
    def forward(self, x):
        x = self.conv(x)
        return self.linear(x.view(x.shape[0], -1))

@every_step
def test_any_net_trains(step):
    learn = steps[step].train(epochs=1, data='digits', model=Tutorial)
    assert learn.model.order.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert type(steps[step].learner(data='digits', model='Model_2').model) is Model_2
    with pytest.raises(TypeError, match='^model is Model_1.* a class or function'):
        steps[step].learner(data='digits', model=Tutorial())

class Watch(Callback):
    "Computes the EMA by hand, and compares."
    order = 1000
    n = validated = 0
    def __init__(self, part): self.part = part
    def is_mean(self): return torch.allclose(weights(self.model), self.mean, atol=1e-5)
    def before_batch(self):
        if self.training and self.n and not self.iter:  # training goes on from its own weights
            assert self.is_mean() == (not self.part)
    def after_batch(self):
        if not self.training: return
        self.n += 1
        now = weights(self.model)
        if self.n == 1 or not self.part: self.mean = now
        else: self.mean = (self.n*self.mean + self.part*now)/(self.n + self.part)
    def after_pred(self):
        if self.training: return
        assert self.is_mean()
        self.validated += 1

@pytest.mark.parametrize('part', [step3.ema, 2, 0])
def test_ema_is_validated_and_left_in_the_net_at_the_end(part):
    "Without an EMA these are the training weights. Each validation is followed by another one, inside it."
    watch = Watch(part)
    watch.learn = step3.train(epochs=3, data='digits', cbs=[watch, FetchPredsCallback()], ema=part)
    assert watch.validated == 3*2*2 and watch.is_mean()

class Interrupt(Callback):
    def before_batch(self):
        if not self.training: raise KeyboardInterrupt
class Start(Callback):
    order = 1000
    def before_train(self): self.weights = weights(self.model)

def test_after_an_interrupted_validation_the_net_is_what_it_seems_to_be():
    "What is loaded then is what is validated and trained."
    learn,other,start = step3.learner(data='digits'),step3.learner(data='digits', seed=1),Start()
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Interrupt())
    learn.model.load_state_dict(other.model.state_dict())
    learn.validate()
    assert same(learn.model, other.model)
    learn.fit(1, cbs=start)
    assert torch.equal(start.weights, weights(other.model))

def test_save_model_callback_leaves_the_weights_whose_accuracy_was_printed():
    best = SaveModelCallback(monitor='valid_accuracy', fname='best')
    learn = step3.train(epochs=12, data='digits', lr=3e-2, cbs=best)
    highest = max(row[-1] for row in learn.recorder.values)
    assert learn.validate()[1] == pytest.approx(highest, abs=1e-6)

@pytest.mark.parametrize('name', nets)
def test_summary_and_hooks_see_the_net(name):
    learn = step3.learner(model=name, data='digits')
    before = weights(learn.model)
    assert f'Total params: {count(learn.model):,}' in str(learn.summary())
    assert torch.equal(weights(learn.model), before)
    with hook_output(learn.model[-1]) as hook:
        learn.validate()
        assert hook.stored.shape[1] == 10

def test_lr_find_and_exploration_leave_the_net_and_the_threads_as_they_are():
    threads = torch.get_num_threads()
    learn = step3.learner(data='digits')
    before = weights(learn.model)
    learn.lr_find(show_plot=False)
    learn.lr_find(end_lr=1e20, num_it=20, stop_div=False, suggest_funcs=(), show_plot=False)  # through NaN losses
    learn.get_preds()
    assert torch.equal(weights(learn.model), before)
    assert torch.get_num_threads() == threads

@pytest.mark.parametrize('accuracies, status, words', [
    ([.5, .994, .995, .994], 0, 'met'),
    ([.999, .999, .999, .9939], 1, 'MISSED'),
    ([.999, .9939, .999, .999], 1, 'MISSED'),
    ([.994], 0, 'met'),
    ([.1]*15, 1, 'MISSED'),
    ([.1]*16, 0, 'not judged')])
def test_verdict(accuracies, status, words):
    got,said = report.verdict(pd.DataFrame(dict(valid_accuracy=accuracies)), .994)
    assert got == status and words in said

files = ['confusion.png', 'curves.png', 'history.csv', 'samples.png', 'top_losses.png', 'weights.pth']

def check_run(step, out, folder):
    "What a run of two epochs on the small digits prints and saves."
    parts = [table(create(step_nets[step])), 'train_loss', 'saved', 'Target\n', 'Result\n',
             'recorded:', 'this run: last 2 of 2', 'Analysis\n', 'This run\n', 'verdict      not judged']
    for part in parts: assert part in out
    assert re.findall(r'^ *(\d+) +\d+\.\d{4} ', out, re.M) == ['1', '2']  # the epochs
    assert '\r' not in out and '█' not in out
    assert sorted(os.listdir(folder)) == files
    for name in files:
        assert f'saved {folder}/{name}' in out
        if name.endswith('png'): assert (folder/name).read_bytes()[:4] == b'\x89PNG'

def test_command_line(run, tmp_path):
    done = run('step3.py', '--data', 'digits', '--epochs', '2', '--seed', '1')
    assert done.returncode == 0
    assert done.stderr == ''
    assert os.listdir() == ['runs']
    folder = (tmp_path/'runs'/'step3'/'not-MNIST').relative_to(tmp_path)
    check_run('step3', done.stdout, folder)
    learn = step3.train(epochs=2, data='digits', seed=1)  # the same in another process
    assert pd.read_csv(folder/'history.csv', index_col='epoch').equals(report.history(learn))
    saved = torch.load(folder/'weights.pth', weights_only=True)
    for name,value in learn.model.state_dict().items():
        assert torch.equal(saved[name], value)
        assert saved[name].is_contiguous()
    _,clean = learn.validate(dl=data.clean_train(learn.dls))
    assert f'train        {clean:.2%} ' in done.stdout

@pytest.mark.parametrize('step', ['step1', 'step2'])
def test_command(step, tmp_path, capsys):
    assert steps[step].main(epochs=2, data='digits', seed=1) == 0
    folder = tmp_path/'runs'/step/'not-MNIST'
    check_run(step, capsys.readouterr().out, folder.relative_to(tmp_path))

def test_in_a_terminal(terminal):
    "Bars, epochs from 1, and the verdict; Ctrl-C ends a run with one line."
    screen = terminal('step3.py', '--data', 'digits', '--epochs', '2')
    screen.expect(r'Epoch 2/2 :.*█.*\r2 +[0-9.]+ .*verdict      not judged')
    screen.wait()
    assert screen.exitstatus == 0
    screen = terminal('step1.py', '--data', 'digits', '--epochs', '9')
    screen.expect('\r1  ')
    screen.sendintr()
    screen.expect(r'Stopped after epoch \d of 9: nothing was saved\.\r\n$')
    screen.wait()
    assert screen.exitstatus == 130

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_cuda():
    learn,again = (step3.train(epochs=12, data='digits') for _ in range(2))
    assert learn.dls.train_ds.x.is_cuda
    assert next(learn.model.parameters()).is_cuda
    assert report.history(learn).valid_accuracy[12] > .9
    assert report.history(learn).equals(report.history(again))

@pytest.mark.mnist
def test_a_missed_target_is_exit_status_1(run, tmp_path):
    done = run('step2.py', '--data', 'mnist', '--epochs', '1', MNIST_ROOT=os.environ['MNIST_ROOT'])
    assert done.returncode == 1
    assert 'TARGET MISSED' in done.stdout
    assert done.stderr == ''
    assert sorted(os.listdir(tmp_path/'runs'/'step2')) == files
