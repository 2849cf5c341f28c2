"The steps: learner, training, repeatability, the command line, what is saved, and what is said of it."
import csv, inspect, os

import pytest
import torch
from fastai.vision.all import Callback, CrossEntropyLossFlat, Learner, accuracy
from fastcore.script import CliError, anno_parser

import data, report, step1, step2, step3
from conftest import offline

from models import Model_1, Model_2, Model_3, Model_4, table

steps = [step1, step2, step3]
batches = lambda step: -(-1437//step.bs)  # of an epoch of the small digits
every_step = pytest.mark.parametrize('step', steps, ids=[s.step for s in steps])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


@every_step
def test_docstring(step):
    heads = [l for l in step.__doc__.splitlines() if l in ('Target', 'Result', 'Analysis')]
    assert heads == ['Target', 'Result', 'Analysis']
    parts = step.__doc__.split('\nResult\n')
    result = parts[1].split('\nAnalysis\n')[0].splitlines()
    assert [l.split(':')[0].strip() for l in result] == ['recorded', 'this run']  # adjacent, in this order
    assert f'{step.target:.2%}' in parts[0] and '{this_run}' in result[1]
    assert step.__doc__.format(this_run='measured').count('measured') >= 1

@every_step
def test_learner_is_untrained_and_changes_with_the_seed_alone(step):
    a,b,c = (torch.cat([p.flatten() for p in step.learner(data='digits', seed=s).model.parameters()]) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)

@every_step
def test_trains_on_the_small_digits(step):
    learn = step.train(epochs=6, data='digits')
    rows = learn.history.rows
    assert [r['epoch'] for r in rows] == [1, 2, 3, 4, 5, 6] and list(rows[0]) == report.columns
    assert rows[-1]['test_accuracy'] > .9 and rows[-1]['train_loss'] < rows[0]['train_loss']
    loss,accuracy = learn.validate()  # the rows say what the net does
    assert abs(accuracy - rows[-1]['test_accuracy']) < 1e-5 and abs(loss - rows[-1]['test_loss']) < 1e-4
    assert len(learn.history.rows) == 6 and len(learn.history.rates) == 6*batches(step)  # and stay as they are afterwards

def test_models_of_the_steps():
    assert [type(s.learner(data='digits').model) for s in steps] == [Model_1, Model_2, Model_3]

def test_schedules():
    rates = [s.train(epochs=3, data='digits').history.rates for s in steps]
    for r,step in zip(rates[:2], steps): assert set(r) == {step.lr}
    assert max(rates[2]) == pytest.approx(step3.lr, rel=.05) and rates[2][-1] < step3.lr/100
    assert 1 <= rates[2].index(max(rates[2])) <= 3  # a tenth of 18 batches

@every_step
def test_same_seed_same_bits(step):
    def bits():
        learn = step.train(epochs=2, data='digits', seed=3)
        return [p.clone() for p in learn.model.state_dict().values()], [{**r, 'seconds': 0} for r in learn.history.rows]
    (a,rows),(b,again) = bits(),bits()
    assert rows == again and all(torch.equal(x, y) for x,y in zip(a, b))

def test_the_mean_of_the_weights_is_judged_and_left_in_the_net():
    class Watch(Callback):
        "Reckons the mean by hand, and compares."
        order,mean,looks,seen = 1000,None,0,0
        def after_batch(self):
            if not self.training or self.iter % step3.every: return
            now = torch.cat([p.detach().flatten() for p in self.model.parameters()])
            reach = min(step3.memory*batches(step3)/step3.every, self.looks/3)  # in looks
            self.mean = now if reach <= 1 else self.mean + (now - self.mean)/reach
            self.looks += 1
        def after_validate(self): self.raw = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        def after_pred(self):
            if self.training: return
            judged = torch.cat([p.detach().flatten() for p in self.model.parameters()])
            assert torch.allclose(judged, self.mean, atol=1e-5)
            self.seen += 1
    watch = Watch()
    learn = step3.train(epochs=10, data='digits', cbs=watch)
    left = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    assert watch.seen == 10*2 and torch.allclose(left, watch.mean, atol=1e-5) and not torch.allclose(left, watch.raw, atol=1e-5)

def test_a_test_that_was_broken_off_gives_the_net_back():
    class Break(Callback):
        def before_batch(self):
            if not self.training: raise KeyboardInterrupt
    learn = step3.learner(data='digits')
    net = learn.model
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Break())
    learn.remove_cb(Break)
    learn.fit(1)
    assert learn.model is net

def test_a_lean_learner_trains_as_a_learner(monkeypatch):
    def events():
        seen = []
        class Record(Callback):
            order = 1000
            def __init__(self): self.after_loss = lambda: seen.append(self.loss.item())  # of this object, not of its class
            def after_step(self): seen.append('step')
            def after_fit(self): seen.append('fit')
        learn = step3.train(epochs=2, data='digits', cbs=Record())
        return seen, [{**r, 'seconds': 0} for r in learn.history.rows]
    lean = events()
    monkeypatch.setattr(report, 'LeanLearner', Learner)
    monkeypatch.setattr(report, 'CrossEntropy', CrossEntropyLossFlat)
    monkeypatch.setattr(report, 'accuracy', accuracy)
    assert lean == events() and len(lean[0]) == 2*(batches(step3)*2 + 2) + 1

def test_lr_find_and_exploration_leave_the_training_as_it_is():
    learn = step3.learner(data='digits')
    before = [p.clone() for p in learn.model.state_dict().values()]
    learn.lr_find(show_plot=False)
    learn.get_preds()
    assert all(torch.equal(x, y) for x,y in zip(before, learn.model.state_dict().values())) and learn.history.rows == ()

def test_threads(monkeypatch):
    for asked,got in (('', min(2, os.cpu_count())), ('1', 1), ('2', 2), ('many', min(2, os.cpu_count()))):
        monkeypatch.setenv('OMP_NUM_THREADS', asked)
        step1.learner(data='digits')
        assert torch.get_num_threads() == got


def rows(*accuracies): return [dict(zip(report.columns, (i+1, .1, .9, .1, a, 1.))) for i,a in enumerate(accuracies)]

@pytest.mark.parametrize('accuracies, epochs, status', [
    ((.5, .994, .995, .994), 4, 0), ((.999, .999, .999, .9939), 4, 1), ((.999, .9939, .999, .999), 4, 1), ((.9939, .994, .994, .994), 4, 0),
    ((.994,), 1, 0), ((.9939,), 1, 1), ((.995, .995, .995), 4, 1),  # the last one: an epoch is missing
    ((.1,)*16, 16, 0)])  # more epochs than the rule allows: not judged
def test_verdict(accuracies, epochs, status):
    got,words = report.verdict(rows(*accuracies), epochs, .994)
    assert got == status and ('MISSED' in words) == bool(status)

def test_digits_are_not_judged():
    status,words = report.verdict(rows(.1, .1, .1), 3, .994, on_mnist=False)
    assert status == 0 and 'not judged' in words and 'NOT MNIST' in words

def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path/'history.csv'
    path.write_text('old')
    def full(p):
        p.write_text('half')
        raise OSError(28, 'No space left on device')
    with pytest.raises(OSError): report.save(full, path)
    assert [f.name for f in tmp_path.iterdir()] == ['history.csv'] and path.read_text() == 'old'


pictures = ['samples.png', 'curves.png', 'confusion.png', 'mistakes.png']

def check_run(step, out, folder):
    "What a run of two epochs with seed 1 on the small digits prints and saves."
    net = {step1: Model_1, step2: Model_2, step3: Model_3}[step]
    parts = [table(net()), 'train_loss', 'saved', 'Target\n', 'Result\n', 'recorded:', 'this run: last 2 of 2', 'Analysis\n', 'This run\n', 'verdict      not judged']
    places = [out.index(o) for o in parts]
    assert places == sorted(places) and 'NOT MNIST' in out and '\r' not in out
    assert sorted(f.name for f in folder.iterdir()) == sorted(['history.csv', 'weights.pth', *pictures])
    for f in folder.iterdir(): assert f'runs/{step.step}/not-MNIST/{f.name}' in out
    for f in pictures: assert (folder/f).read_bytes()[:4] == b'\x89PNG' and (folder/f).stat().st_size > 10_000
    saved = list(csv.DictReader((folder/'history.csv').read_text().splitlines()))
    assert [list(r) for r in saved] == [report.columns]*2
    return saved, torch.load(folder/'weights.pth', weights_only=True)

def test_command_line(run, tmp_path):
    done = run('step3.py', '--data', 'digits', '--epochs', '2', '--seed', '1')
    assert done.returncode == 0 and done.stderr == '' and [f.name for f in tmp_path.iterdir()] == ['runs']
    saved,weights = check_run(step3, done.stdout, tmp_path/'runs'/'step3'/'not-MNIST')
    # the saved weights are the net that was judged, and the same seed gives the same numbers in another process
    learn = step3.train(epochs=2, data='digits', seed=1)
    assert [float(r['test_loss']) for r in saved] == [r['test_loss'] for r in learn.history.rows]
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in weights.items())

@pytest.mark.parametrize('step', [step1, step2], ids=['step1', 'step2'])
def test_command(step, tmp_path, capsys):
    assert step.main(epochs=2, data='digits', seed=1) == 0
    check_run(step, capsys.readouterr().out, tmp_path/'runs'/step.step/'not-MNIST')

def test_what_cannot_be_saved_is_said_before_training(tmp_path, capsys):
    (tmp_path/'runs').write_text('a file where the folder should be')
    with pytest.raises(SystemExit) as e: step1.main(data='digits', epochs=1)
    assert 'runs/step1' in e.value.code and 'Nothing was trained' in e.value.code and 'epoch' not in capsys.readouterr().out.split('budget')[1]

def test_find(tmp_path, capsys):
    assert step3.main(data='digits', find=True) == 0
    out = capsys.readouterr().out
    found = dict(l.split() for l in out.splitlines() if l.split()[0] in ('valley', 'slide', 'steep', 'minimum'))
    assert len(found) == 4 and all(1e-7 < float(v) < 10 for v in found.values())
    assert [f.name for f in (tmp_path/'runs'/'step3'/'not-MNIST').iterdir()] == ['lr_find.png'] and 'lr_find.png' in out

def test_import_has_no_side_effect_and_exploration_in_a_repl(run):
    done = run('-i', '-c', "import os, sys, step1, step2; from step3 import learner; print(os.listdir(), file=sys.stderr); print('imported'); "
               "learn = learner(data='digits'); print(learn.lr_find()); learn.fit_one_cycle(1, 1e-2); learn.show_results(); "
               "print(learn.predict(learn.dls.valid_ds.x[0])[0])")
    assert done.returncode == 0 and done.stdout.startswith('imported\n') and done.stderr.startswith('[]\n')  # until then: no output, no file
    assert 'SuggestedLRs(valley=' in done.stdout and 'Error' not in done.stderr

def test_help():
    text = anno_parser(step2.main).format_help()
    for option in inspect.signature(step2.main).parameters: assert f'--{option}' in text

bad = [('--epochs', '0'), ('--epochs', '-1'), ('--epochs', '1.5'), ('--lr', '0'), ('--lr', 'nan'), ('--lr', 'inf'), ('--lr', '-1'), ('--lr', 'x'),
       ('--bs', '0'), ('--bs', '1'), ('--seed', '-1'), ('--data', 'cifar'), ('--momentum', '1'), ('--lr',)]

@pytest.mark.parametrize('args', bad, ids=' '.join)
def test_bad_arguments(capsys, args):
    with pytest.raises(SystemExit) as e: anno_parser(step1.main).parse_args(list(args))
    err = capsys.readouterr().err.splitlines()
    assert e.value.code == 2 and args[0] in err[-1]

def test_another_net(no_pictures, capsys):
    assert step3.main(epochs=1, data='digits', model='Model_4') == 0
    out = capsys.readouterr().out
    assert out.startswith(table(Model_4())) and 'Model_4, 3,690 parameters' in out

def test_without_mnist(no_pictures, tmp_path, monkeypatch, capsys):
    for k,v in offline.items(): monkeypatch.setenv(k, v)
    assert step1.main(epochs=1, root=tmp_path/'nothing') == 0
    said = capsys.readouterr()
    assert said.err.startswith('*** MNIST is not in') and 'NOT MNIST' in said.err and 'NOT MNIST' in said.out

def test_mnist_insisted_on_but_damaged_or_missing(run, tmp_path):
    done = run('step1.py', '--data', 'mnist')
    assert done.returncode == 1 and 'cannot be downloaded' in done.stderr and len(done.stderr.splitlines()) == 1
    raw = tmp_path/'MNIST'/'raw'
    raw.mkdir(parents=True)
    (raw/'train-images-idx3-ubyte').write_bytes(b'half a fi')
    with pytest.raises(CliError, match=r'train-images-idx3-ubyte is corrupt \(9 bytes'): step1.main(root=tmp_path)

@pytest.mark.parametrize('guarded,done', [(False, 12 + 2), (True, 11)])
def test_no_batch_waits_for_a_gpu(guarded, done):
    "torch's meta device knows shapes and no numbers: who asks it for one, as one does who waits for a GPU, gets an error."
    class Count(Callback):
        batches = 0
        def after_batch(self): self.batches += 1
    learn,counted = step3.learner(data='digits'),Count()
    learn.dls = data.mnist_dls('digits', tfms=[data.Deskew(), data.RandomWarp(**step3.warp)], device='meta')
    guard = [report.Guard('step3', False, bs=128)] if guarded else []
    with pytest.raises(RuntimeError, match='meta'): learn.fit_one_cycle(1, 1e-2, cbs=[counted, *guard])
    assert counted.batches == done  # of 12 for training and 2 for testing; the guard takes a look in the last one of each

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_cuda():
    learn = step3.train(epochs=6, data='digits')
    assert learn.dls.train_ds.x.is_cuda and next(learn.model.parameters()).is_cuda and learn.history.rows[-1]['test_accuracy'] > .9
    again = step3.train(epochs=6, data='digits')
    assert [{**r, 'seconds': 0} for r in learn.history.rows] == [{**r, 'seconds': 0} for r in again.history.rows]

@pytest.mark.mnist
def test_a_missed_target_is_exit_status_1(run, tmp_path):
    done = run('step3.py', '--data', 'mnist', '--epochs', '1', MNIST_ROOT=os.environ['MNIST_ROOT'])
    assert done.returncode == 1 and 'TARGET MISSED' in done.stdout and done.stderr == ''
    assert sorted(f.name for f in (tmp_path/'runs'/'step3').iterdir()) == sorted(['history.csv', 'weights.pth', *pictures])
