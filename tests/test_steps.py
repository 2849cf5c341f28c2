"The steps: learner, training, repeatability, the command line, what is saved, what is said of it, and a notebook."
import io, os, re
from functools import partial

import nbclient, nbformat
import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, FetchPredsCallback, SaveModelCallback, hook_output

import data, report, step1, step2, step3
from conftest import offline, project
import models
from models import Model_1, Model_2, Model_3, count, table

steps = {'step1': step1, 'step2': step2, 'step3': step3}
step_nets = dict(step1=Model_1, step2=Model_2, step3=Model_3)
nets = [name for name in vars(models) if name.startswith('Model_')]
every_step = pytest.mark.parametrize('step', steps)

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

def weights(net): return torch.cat([v.flatten() for v in net.state_dict().values() if v.is_floating_point()])

@every_step
def test_text(step):
    target,result,analysis = re.split(r'\nResult\n|\nAnalysis\n', steps[step].__doc__)
    assert '\nTarget\n' in target and f'{steps[step].target:.2%}' in target
    assert [l.split(':')[0].strip() for l in result.splitlines()] == ['recorded', 'this run'] and '{this_run}' in result
    assert len(analysis.splitlines()) <= 20

@every_step
def test_learner_is_untrained_and_changes_with_the_seed_alone(step):
    a,b,c = (steps[step].learner(data='digits', seed=s).model for s in (0, 0, 1))
    assert type(a) is step_nets[step] and torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))

@every_step
def test_trains_on_the_small_digits_and_again_to_the_same_bits(step):
    n = 12 if step == 'step3' else 6  # the EMA needs some epochs to forget the untrained net
    learn,again = (steps[step].train(epochs=n, data='digits', seed=3) for _ in range(2))
    rows = report.history(learn)
    assert rows.index.tolist() == [*range(1, n+1)] and list(rows) == ['train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy']
    assert rows.valid_accuracy[n] > .9 and rows.train_loss[n] < rows.train_loss[1]
    assert rows.equals(report.history(again)) and torch.equal(weights(learn.model), weights(again.model))
    loss,accuracy = learn.validate()  # the rows say what the net does
    assert accuracy == pytest.approx(rows.valid_accuracy[n], abs=1e-5) and loss == pytest.approx(rows.valid_loss[n], abs=1e-4)

def test_schedules():
    learns = [s.train(epochs=3, data='digits', bs=200) for s in steps.values()]
    assert {(l.dls.bs, str(l.model_dir)) for l in learns} == {(200, 'runs')} and learns[2].opt.hypers[0]['wd'] == step3.wd
    rates = [l.recorder.lrs for l in learns]
    assert set(rates[0]) == {step1.lr} and set(rates[1]) == {step2.lr}
    assert max(rates[2]) == pytest.approx(step3.lr, rel=.05) and rates[2][-1] < step3.lr/30 and 1 <= rates[2].index(max(rates[2])) <= 3

def with_table():
    "Model_3 with a buffer of integers, which no average may touch."
    net = Model_3()
    net.register_buffer('index', torch.arange(9).flip(0))
    return net

@pytest.mark.parametrize('part', [step3.ema, 2, 0])
def test_ema_is_validated_and_left_in_the_net_at_the_end(part):
    "Without an EMA these are the training weights. Each validation is followed by another one, inside it."
    def is_mean(): return torch.allclose(weights(watch.model), watch.mean, atol=1e-5)
    class Watch(Callback):
        "Computes the average by hand, and compares."
        order,mean,n,seen = 1000,None,0,0
        def before_batch(self):
            if self.training and self.n and not self.iter: assert is_mean() == (not part)  # training goes on from its own weights
        def after_batch(self):
            if not self.training: return
            now,keep = weights(self.model),part and (1+self.n)/(1+self.n+part)
            self.mean,self.n = now if self.mean is None else keep*self.mean + (1-keep)*now,self.n+1
        def after_pred(self):
            if not self.training:
                assert is_mean()
                self.seen += 1
    watch = Watch()
    learn = step3.train(epochs=3, data='digits', cbs=[watch, FetchPredsCallback()], model=with_table, ema=part)
    watch.learn = learn
    assert watch.seen == 3*2*2 and is_mean() and torch.equal(learn.model.index.cpu(), torch.arange(9).flip(0))

def test_an_interrupted_validation_leaves_the_training_weights():
    "The next fit starts from them, with the module that was there, or from what was loaded meanwhile."
    class Break(Callback):
        def after_train(self): self.now = weights(self.model)
        def before_batch(self):
            if not self.training: raise KeyboardInterrupt
    class Start(Callback):
        order = 1000
        def before_train(self): self.now = weights(self.model)
    learn,stop,start = step3.learner(data='digits'),Break(),Start()
    net = learn.model
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=stop)
    learn.fit(1, cbs=start)
    assert learn.model is net and torch.equal(stop.now, start.now)
    other = step3.learner(data='digits', seed=1).model
    for go in (learn.get_preds, partial(learn.fit, 1, cbs=start)):
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=stop)
        net.load_state_dict(other.state_dict())
        go()
        assert torch.equal(weights(net) if go == learn.get_preds else start.now, weights(other))

def test_save_model_callback_leaves_the_weights_whose_accuracy_was_printed():
    learn = step3.train(epochs=12, data='digits', lr=3e-2, cbs=SaveModelCallback(monitor='valid_accuracy', fname='best'))
    best = max(row[-1] for row in learn.recorder.values)
    assert learn.validate()[1] == pytest.approx(best, abs=1e-6)

@pytest.mark.parametrize('net', nets)
def test_summary_and_hooks_see_the_net(net):
    learn = step3.learner(model=getattr(models, net), data='digits')
    before = weights(learn.model)
    assert f'Total params: {count(learn.model):,}' in str(learn.summary()) and torch.equal(weights(learn.model), before)
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
    assert torch.equal(weights(learn.model), before) and torch.get_num_threads() == threads

def rows(*accuracies): return pd.DataFrame(dict(valid_accuracy=accuracies), index=range(1, len(accuracies)+1))

@pytest.mark.parametrize('accuracies, status', [
    ((.5, .994, .995, .994), 0), ((.999, .999, .999, .9939), 1), ((.999, .9939, .999, .999), 1), ((.994,), 0), ((.9939,), 1),
    ((.1,)*15, 1), ((.1,)*16, 0)])  # more epochs than the rule allows: not judged
def test_verdict(accuracies, status):
    got,words = report.verdict(rows(*accuracies), .994)
    assert got == status and ('MISSED' in words) == bool(status)
    assert report.verdict(rows(*accuracies), .994, on_mnist=False) == (0, f'not judged: {data.not_mnist}')

pictures = ['samples.png', 'curves.png', 'confusion.png', 'top_losses.png']

def check_run(step, out, folder):
    "What a run of two epochs with seed 1 on the small digits prints and saves."
    parts = [table(step_nets[step]()), 'test (360)', 'train_loss', 'saved', 'Target\n', 'Result\n', 'recorded:',
             'this run: last 2 of 2', 'Analysis\n', 'This run\n', 'verdict      not judged']
    assert re.findall(r'^ *(\d+) +\d+\.\d{4} ', out, re.M) == ['1', '2']  # the epochs
    places = [out.index(o) for o in parts]
    assert places == sorted(places) and 'NOT MNIST' in out and '\r' not in out and '█' not in out
    assert sorted(f.name for f in folder.iterdir()) == sorted(['history.csv', 'weights.pth', *pictures])
    for f in folder.iterdir(): assert f'{folder.name}/{f.name}' in out
    for f in pictures: assert (folder/f).read_bytes()[:4] == b'\x89PNG' and (folder/f).stat().st_size > 10_000

def test_command_line(run, tmp_path):
    done = run('step3.py', '--data', 'digits', '--epochs', '2', '--seed', '1')
    assert done.returncode == 0 and done.stderr == '' and [f.name for f in tmp_path.iterdir()] == ['runs']
    folder = tmp_path/'runs'/'step3'/'not-MNIST'
    check_run('step3', done.stdout, folder)
    learn = step3.train(epochs=2, data='digits', seed=1)  # the same in another process
    assert pd.read_csv(folder/'history.csv', index_col='epoch').equals(report.history(learn))
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in torch.load(folder/'weights.pth', weights_only=True).items())
    assert f'train        {learn.validate(dl=data.clean_train(learn.dls))[1]:.2%} ' in done.stdout

@pytest.mark.parametrize('step', ['step1', 'step2'])
def test_command(step, tmp_path, capsys):
    assert steps[step].main(epochs=2, data='digits', seed=1) == 0
    check_run(step, capsys.readouterr().out, tmp_path/'runs'/step/'not-MNIST')

def test_without_stdout_and_docstrings(monkeypatch, no_pictures):
    for what in ('sys.stdout', 'step1.__doc__'):  # `>&-`, `python -OO`
        monkeypatch.setattr(what, None)
        assert step1.main(epochs=1, data='digits') == 0

def test_an_encoding_without_all_characters(monkeypatch, no_pictures):
    out = io.BytesIO()
    monkeypatch.setattr('sys.stdout', io.TextIOWrapper(out, 'ascii', write_through=True))
    assert step1.main(epochs=6, data='digits') == 0 and b'verdict' in out.getvalue() and b'8?26?26' in out.getvalue()
    last = pd.read_csv('runs/step1/not-MNIST/history.csv').valid_accuracy[-5:]
    assert f'last 5 of 6 epochs: mean {last.mean():.2%}, lowest {last.min():.2%}'.encode() in out.getvalue()

def readme_lines():
    "The lines that the README has a reader type in a REPL."
    block = re.search(r'a notebook\n\n```python\n(.*?)```', (project/'README.md').read_text(encoding='utf-8'), re.S)[1]
    return [l[4:].split('  #')[0] for l in block.splitlines() if l.startswith('>>> ')]

def on_digits(line): return line.replace('learner()', "learner(data='digits')").replace('train(', "train(data='digits', epochs=1, ")

def test_readme_lines_in_a_repl(run):
    "Importing prints nothing and leaves nothing; then every line works."
    lines = readme_lines()
    code = [f"import os, sys, step1, step2; {lines[0]}; print(os.listdir(), file=sys.stderr); print('imported')"]
    code += map(on_digits, lines[1:])
    done = run('-i', '-c', '\n'.join(code))
    assert done.returncode == 0 and done.stdout.startswith('imported\n') and done.stderr.startswith('[]\n')
    assert 'Error' not in done.stderr and 'Warning' not in done.stderr and 'valid_accuracy' in done.stdout

def test_readme_lines_in_a_notebook(tmp_path, monkeypatch):
    "There fastai shows its bars and its table."
    for k,v in {**offline, 'PYTHONPATH': str(project), 'PYTHONWARNINGS': 'ignore'}.items(): monkeypatch.setenv(k, v)
    lines = readme_lines()
    lines += ["import step1; print('status', step1.main(epochs=1, data='digits'))"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(on_digits(l)) for l in lines])
    nbclient.NotebookClient(book, timeout=120, resources=dict(metadata=dict(path=tmp_path))).execute()
    shown = [str(c.outputs) for c in book.cells]
    assert '<table' in ''.join(shown) and 'valid_accuracy' in ''.join(shown) and 'image/png' in ''.join(shown)
    assert 'status 0' in shown[-1] and '<table' in shown[-1]

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_cuda():
    learn,again = (step3.train(epochs=12, data='digits') for _ in range(2))
    assert learn.dls.train_ds.x.is_cuda and next(learn.model.parameters()).is_cuda and report.history(learn).valid_accuracy[12] > .9
    assert report.history(learn).equals(report.history(again))

@pytest.mark.mnist
def test_a_missed_target_is_exit_status_1(run, tmp_path):
    done = run('step2.py', '--data', 'mnist', '--epochs', '1', MNIST_ROOT=os.environ['MNIST_ROOT'])
    assert done.returncode == 1 and 'TARGET MISSED' in done.stdout and done.stderr == ''
    assert sorted(f.name for f in (tmp_path/'runs'/'step2').iterdir()) == sorted(['history.csv', 'weights.pth', *pictures])
