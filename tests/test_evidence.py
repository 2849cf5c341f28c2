"Every figure that a docstring or a README gives is recomputed from `results/`; a recorded run is trained again where MNIST is."
import re

import fastai, pytest, torch, torchvision
import pandas as pd
from fastai.vision.all import Callback, CancelFitException

import evidence, record, report, step1, step2, step3
from models import Model_1, Model_2, Model_3, Model_4, Model_5, count, layers

steps = dict(step1=step1, step2=step2, step3=step3)
nets = {'step1': Model_1, 'step2': Model_2, 'step2-no-dropout': Model_3, 'step3': Model_3, 'step3-8epochs': Model_3, 'step3-Model_4': Model_4,
        'step3-Model_5': Model_5, 'filters-2-2-3-3-4-4': record.experiments['filters-2-2-3-3-4-4'].keywords['model']}
recorded = [name for name in {**nets, **evidence.changes} if evidence.recorded(name)]

@pytest.mark.parametrize('path', evidence.texts, ids=lambda p: str(p.relative_to(evidence.project)))
def test_every_figure_is_as_recorded(path): assert evidence.fill(path) == path.read_text(encoding='utf-8')

@pytest.mark.parametrize('step', steps)
def test_no_figure_of_an_analysis_is_without_a_source(step):
    text = steps[step].__doc__.split('\nAnalysis\n')[1]
    for pattern in (evidence.cited, evidence.cited_change): text = pattern.sub('', text)
    assert not re.search(r'\d+\.\d+ ?%|±', text), text

def test_parameters_named_in_step_1():
    assert f'{max(row[2] for row in layers(Model_1())):,} of its {count(Model_1()):,} parameters' in step1.__doc__ and layers(Model_1())[-2][2] == 2890

def test_wrong_figures_are_put_right(tmp_path):
    page = tmp_path/'page.md'
    page.write_text('12.34% [mean of step1], -9.99 ± 0.01 [step2], 7<!-- seeds of step1 -->\n<!-- table steps -->\nold\n<!-- end -->\n', encoding='utf-8')
    assert evidence.fill(page) == (f'{evidence.late("step1").stack().mean():.2f}% [mean of step1], {evidence.words("step2")} [step2], {len(evidence.late("step1"))}<!-- seeds of step1 -->\n'
                                   f'<!-- table steps -->\n\n{evidence.steps_table()}\n\n<!-- end -->\n')

@pytest.mark.parametrize('name', recorded)
def test_recorded_runs_are_whole_and_of_these_nets(name):
    seeds = evidence.runs(name)
    assert seeds.index.unique('seed').tolist() == list(range(len(seeds.index.unique('seed')))) and seeds.loc[4] is not None  # 0, 1, 2, …: none left out
    for seed,rows in seeds.groupby('seed'):
        assert rows.index.get_level_values('epoch').tolist() == list(range(1, 9 if '8epochs' in name else 16)) and list(rows) == ['train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy']
        about = evidence.about(name, seed)
        assert about['parameters'] < 8_000 and len(about['mistakes']) == round(10_000*(1 - rows.valid_accuracy.iloc[-1]))
        if name in nets: assert about['parameters'] == count(nets[name]())
        if name in steps: assert rows.valid_accuracy.iloc[-1] < about['clean'] < 1  # train accuracy

def test_step3_reaches_the_goal_in_every_seed():
    assert len(evidence.late('step3')) >= 20 and evidence.late('step3').min(axis=None) >= 99.40

def test_intervals_and_corrections():
    d = pd.Series([.1, .2, .3, .2, .2])
    assert evidence.interval(d) == pytest.approx(2.776*d.std()/5**.5, rel=1e-3)  # Student's t, four degrees of freedom
    assert evidence.interval(d, extra=1/5) == pytest.approx(evidence.interval(d)*2**.5)
    assert evidence.signed(-.001) == '+0.00' and evidence.signed(-.006) == '-0.01'

@pytest.mark.parametrize('name, base', [c[:2] for c in evidence.candidates])
def test_folds_are_run_in_order(name, base):
    ratio = evidence.compare(name, base)[0]
    assert ratio.index.tolist() == list(range(1, len(ratio)+1))

def test_the_steps_are_what_the_rule_took():
    assert evidence.decided('step2', 'step2-no-dropout') == evidence.decided('step3', 'relu') == evidence.decided('relu', 'before') == 'taken'
    for name,base,_ in evidence.candidates:  # nothing that the rule took was left out
        assert base != 'step3' or evidence.decided(name, base) != 'taken', name

def on_folds(monkeypatch, **losses):
    "Two recipes' runs: for each a list of losses per fold, one for each seed."
    def folds(name): return pd.DataFrame([dict(fold=f, seed=s, loss=l, accuracy=100-l) for f,seeds in enumerate(losses[name], 1) for s,l in enumerate(seeds)]).set_index(['fold', 'seed'])
    monkeypatch.setattr(evidence, 'folds', folds)
    return evidence.decided('new', 'old')

def test_the_rule(monkeypatch):
    old,lower,higher = [[2, 4]]*6,[2.5, 3],[3, 3.5]  # the mean of the old recipe's runs counts: 3
    assert on_folds(monkeypatch, old=old, new=[lower]*5 + [higher]) == 'taken'
    assert on_folds(monkeypatch, old=old, new=[lower]*4 + [higher]*2) == on_folds(monkeypatch, old=old, new=[[4], [4]]) == 'no'
    assert on_folds(monkeypatch, old=old, new=[[2.5]]*6) == on_folds(monkeypatch, old=old, new=[lower]*5) == 'undecided'  # one seed; five folds
    assert on_folds(monkeypatch, old=old, new=[lower]*5 + [[9, 9]]) == 'no'  # accuracy lower

def test_learning_rates_are_read_off_lr_find():
    found = pd.read_csv(evidence.here/'lr_find.csv').groupby('step').median()
    for step in ('step1', 'step2'): assert found.valley[step] < steps[step].lr == step1.lr < found.slide[step]
    assert found.minimum.step3 < step3.lr < found.steep.step3

class Epochs(Callback):
    "Ends a fit after three epochs, the schedule being that of the whole."
    order = 1000
    def before_epoch(self):
        if self.epoch == 3: raise CancelFitException

@pytest.mark.mnist
@pytest.mark.parametrize('step', ['step1', 'step3'])
def test_a_recorded_seed_trains_again_to_the_same_numbers(step):
    about,was = evidence.about(step),torch.get_num_threads()
    torch.set_num_threads(about['threads'])
    now = report.history(steps[step].train(seed=0, data='mnist', cbs=Epochs()))
    here = dict(threads=torch.get_num_threads(), device='cuda' if torch.cuda.is_available() else 'cpu', cpu=torch.backends.cpu.get_cpu_capability(),
                torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__)
    torch.set_num_threads(was)
    then = evidence.runs(step).loc[0].loc[:3]
    if all(about[k] == v for k,v in here.items()): assert now.equals(then)  # to the last bit, as far as it is told
    else: assert (abs(now - then).train_accuracy[1:] < .003).all()
