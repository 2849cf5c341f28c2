"Every figure that a docstring or the README gives is recomputed from `results/`; a recorded run is trained again where MNIST is."
import csv, re, statistics

import pytest
import torch
import torchvision
import fastai
from fastai.vision.all import Callback, CancelFitException

import evidence, record, report, step1, step2, step3
from conftest import project
from models import Model_1, Model_2, Model_3, Model_4, count, layers

steps = [step1, step2, step3]
every_step = pytest.mark.parametrize('step', steps, ids=[s.step for s in steps])
readme = (project/'README.md').read_text()


@every_step
def test_recorded_line(step): assert f'recorded: {evidence.recorded(step.step)}' in ' '.join(step.__doc__.split())

texts = {**{s.step: s.__doc__ for s in steps}, 'README': readme}

@pytest.mark.parametrize('name', texts)
def test_cited_figures(name): assert evidence.wrong_citations(texts[name]) == []

@every_step
def test_analysis_has_no_figure_without_a_source(step):
    text = step.__doc__.split('\nAnalysis\n')[1]
    assert evidence.cited_difference.search(text)
    for cited in (evidence.cited_difference, evidence.cited_level): text = cited.sub('', text)
    assert not re.search(r'\d+\.\d+ ?%|\d+\.\d+ points|±', text), text

@pytest.mark.parametrize('table', [evidence.steps_table(), evidence.seeds_table('step3'), evidence.public_table(), evidence.ablations_table(), evidence.holdout_table(),
                                   evidence.speed_table(), evidence.arithmetic_table()], ids=['steps', 'seeds', 'public', 'ablations', 'holdout', 'speed', 'arithmetic'])
def test_tables_of_the_readme(table): assert table in readme

def test_parameters_named_in_step_1():
    rows = layers(Model_1())
    assert f'{max(r[2] for r in rows):,} of its {count(Model_1()):,} parameters' in step1.__doc__ and rows[-2][2] == max(r[2] for r in rows)

def test_wrong_figures_are_found():
    right = f'{evidence.level("step3"):.2f}% [mean of step3]'
    assert evidence.wrong_citations(right) == []
    assert evidence.wrong_citations('12.34% [mean of step3]') and evidence.wrong_citations('+9.99 ± 0.01 points [step3 against step2]')

nets = {'step1': Model_1, 'step2': Model_2, 'step3': Model_3, 'step3-8epochs': Model_3, 'step3-Model_4': Model_4}

@pytest.mark.parametrize('name', [*nets, *(n for n in evidence.ablations if n.startswith('ablations/') and evidence.runs(n))])
def test_recorded_runs_are_whole_and_of_these_nets(name):
    runs = evidence.runs(name)
    assert list(runs) == list(range(len(runs))) and len(runs) >= 5  # seeds 0, 1, 2, …: none left out
    for seed,rows in runs.items():
        assert list(rows[0]) == report.columns and [r['epoch'] for r in rows] == list(range(1, 9 if '8epochs' in name else 16))
        assert all(0 <= r[f'{part}_accuracy'] <= 1 for r in rows for part in ('train', 'test'))
        assert evidence.about(name, seed)['parameters'] < 8_000
        if name in nets: assert evidence.about(name, seed)['parameters'] == count(nets[name]())

def test_settled():
    def rows(*a): return [dict(test_accuracy=o/100) for o in a]
    assert evidence.settled(rows(99.4, 99.39, 99.4, 99.5)) == 3 and evidence.settled(rows(99.4, 99.5)) == 1 and evidence.settled(rows(99.4, 99.3)) is None

def test_learning_rates_are_read_off_lr_find():
    rows = list(csv.DictReader((project/'results'/'lr_find.csv').read_text().splitlines()))
    middle = lambda step,kind: statistics.median(float(r[kind]) for r in rows if r['step'] == step.step)
    assert step1.lr == round(middle(step1, 'valley'), 3) and middle(step2, 'valley') < step2.lr < middle(step2, 'slide')
    assert middle(step3, 'slide')/1.5 < step3.lr < 1.5*middle(step3, 'slide') and middle(step3, 'valley') < step3.lr/5
    for kind in ('valley', 'minimum', 'steep'):
        rate = record.experiments[f'ablations/{kind}'].keywords['lr']
        assert rate == pytest.approx(middle(step3, kind), rel=.05)
        assert f'peak rate {rate:.1e}'.replace('e-0', 'e-') in evidence.ablations[f'ablations/{kind}'][1]

def test_step3_reaches_the_goal():
    for rows in evidence.runs('step3').values(): assert min(evidence.last(rows)) >= 99.40 and evidence.settled(rows)
    assert evidence.level('step3') >= 99.5 and len(evidence.runs('step3')) == 20
    from_ = [evidence.settled(rows) for rows in evidence.runs('step3-8epochs').values()]
    assert 'all of ten seeds ended at 99.40% or more, nine of them were there by epoch 6' in ' '.join(readme.split())
    assert (len(from_), sum(map(bool, from_)), sum(n <= 6 for n in from_ if n)) == (10, 10, 9)

first = ', trained on the last 50,000 images and judged on the first 10,000'  # the other hold-out

def on_holdout(candidate):
    "{seed: mean of the last five epochs} of `candidate` after 15 epochs."
    return {r['seed']: float(r['mean_of_last_5']) for r in csv.DictReader((project/'results'/'holdout.csv').read_text().splitlines())
            if (r['candidate'], r['epochs']) == (candidate, '15')}

def holdout_differences(candidate, other):
    "Of `candidate` to the recipe, seed by seed."
    recipe,found = on_holdout('the recipe' + other),on_holdout(candidate + other)
    return [found[s] - recipe[s] for s in found]

@pytest.mark.parametrize('other,seeds', [('', 10), (first, 4)])
def test_deskewing_is_better_in_every_seed_of_both_hold_outs(other, seeds):
    recipe,without = on_holdout('the recipe' + other),on_holdout('not deskewed' + other)
    assert len(recipe) == seeds and recipe.keys() == without.keys() and all(recipe[s] > without[s] for s in recipe)

@pytest.mark.parametrize('other', ['', first])
def test_the_steep_rate_is_no_better_on_both_hold_outs(other):
    diffs = holdout_differences('deskewed, peak rate 0.058', other)
    assert len(diffs) == 4 and statistics.mean(diffs) < 2*evidence.error(diffs)

def test_the_hold_outs_disagree_about_the_whole_frame():
    one,two = (statistics.mean(holdout_differences('deskewed, whole frame', other)) for other in ('', first))
    assert one < 0 < two

def test_only_mnist_is_evidence():
    "Runs on other data are called runs/…/not-MNIST; nothing of the kind is in results/."
    assert not [f for f in (project/'results').rglob('*') if 'not-MNIST' in f.name]


class FirstEpoch(Callback):
    "Ends a fit after its first epoch, the schedule being that of the whole."
    order = 1000
    def before_epoch(self):
        if self.epoch == 1: raise CancelFitException

@pytest.mark.mnist
@pytest.mark.parametrize('step', [step1, step3], ids=['step1', 'step3'])
def test_a_recorded_seed_trains_again_to_the_same_numbers(step, monkeypatch):
    about = evidence.about(step.step)
    monkeypatch.setenv('OMP_NUM_THREADS', str(about['threads']))
    learner = step.learner
    monkeypatch.setattr(step, 'learner', lambda **kwargs: learner(**kwargs).add_cb(FirstEpoch()))
    now,then = step.train(seed=0, data='mnist').history.rows[0],evidence.runs(step.step)[0][0]
    here = dict(threads=torch.get_num_threads(), device=str(step.learner(data='digits').dls.device), cpu=torch.backends.cpu.get_cpu_capability(),
                torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__)
    same = all(about[k] == v for k,v in here.items())
    for column in report.columns[1:-1]:  # to the last bit where the recording was made so, else within two points
        assert now[column] == pytest.approx(then[column], abs=0 if same else .02), column
