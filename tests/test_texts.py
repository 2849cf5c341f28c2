"The texts give the numbers of the recorded runs, and the code is what was recorded."
import json, re

import fastai, pandas as pd, pytest, torch, torchvision
from fastai.vision.all import Callback, CancelFitException

import data, evidence, experiments, models, record, report, step1, step2, step3
from conftest import project
from evidence import epochs, measured, pairs, runs, tested

key = experiments.key
steps = dict(step1=step1, step2=step2, step3=step3)
pages = {name: (project/name).read_text(encoding='utf-8') for name in ('README.md', 'results/README.md')}
readme = pages['results/README.md']
rates = pd.read_csv(evidence.here/'lr_find.csv').groupby('step').median(numeric_only=True)

def about(name):
    "What a text may say of experiment `name`."
    found = tested.loc[name]
    train,test = round(100*found.clean_accuracy.mean(), 2),round(found.final.mean(), 2)  # a reader subtracts these
    said = f'{train:.2f} {test:.2f} {train - test:.2f} {found.accuracy.mean():.2f} {found.lowest.min():.2f}'
    return f'{said} {found.sd.mean():.2f} {found.parameters[0]:,} {evidence.met(name)} epoch {evidence.since(name)} '

def numbers(text):
    spaced = re.sub(r'\s+', ' ', text)
    return set(re.findall(r'\d+\.\d+|\d+,\d{3}|\d+ of [12]0|(?<=epoch )\d+ to \d+', spaced))

@pytest.mark.parametrize('page', pages)
def test_the_tables_and_the_prose_of_a_page_are_as_recorded(page):
    assert evidence.fill(pages[page]) == pages[page]
    prose = re.sub(r'(?s)<!-- table.*?<!-- end -->|```.*?```', '', pages[page])
    recorded = f'99.40 {evidence.seeds_on_folds()} '
    for name in ('step1', 'step2', 'step3', 'step3-GPU'): recorded += about(name)
    assert set(re.findall(r'\d\d\.\d\d(?=%)', prose)) <= numbers(recorded)

@pytest.mark.parametrize('step', steps)
def test_every_number_in_the_text_of_a_step_is_in_its_tables(step):
    text,target = steps[step].__doc__,steps[step].target
    recorded = f'98.30 98.65 98.80 99.10 99.40 1.35 0.90 0.60 {experiments.recipe(step)} {evidence.result(step)} '
    for layer in models.layers(models.nets[f'Model_{step[-1]}']()): recorded += f'{layer[2]:,} '
    for rate in rates.loc[step]: recorded += f'{rate:.4f} '
    rows = []
    for what in evidence.changes:
        of,name,base = pairs[what]
        recorded += f'{evidence.row(what)} '
        if of != step: continue
        rows.append(evidence.row(what))
        recorded += f'{about(name)} {about(base)} {evidence.met(base, target)} '
    assert set(re.findall(r'\n +([+-].*)', text)) <= set(rows)
    assert f'recorded: {evidence.result(step)}\n' in text
    assert numbers(text) <= numbers(recorded), numbers(text) - numbers(recorded)

@pytest.mark.mnist
def test_the_digits_that_step_3_confuses():
    found = evidence.confused('step3', data.mnist_dls('mnist').valid_ds.y)
    said = re.findall(r'(\d) (?:read )?as (\d)', step3.__doc__)
    assert [(int(digit), int(taken_for)) for digit,taken_for in said] == [*found.index[:3]]

def test_recorded_runs_are_whole():
    assert not runs.commit.str.contains('dirty|unknown').any()
    rows = epochs.groupby(key).epoch.agg(list)
    assert len(rows) == len(runs)
    for run in runs.set_index(key).itertuples():
        assert rows[run.Index] == [*range(1, 1 + json.loads(run.recipe)['epochs'])]
    for run in tested.itertuples(): assert len(run.wrong.split()) == round(10_000 - 100*run.final)
    for name in runs.experiment[runs.fold == 0]:
        seeds = tested.loc[name].index
        assert [*seeds] == [*range(len(seeds))]  # none is left out

@pytest.mark.parametrize('name', experiments.experiments)
def test_the_code_is_the_recipe_that_was_recorded(name):
    assert set(runs.recipe[runs.experiment == name]) == {experiments.recipe(name)}

@pytest.mark.parametrize('what', [what for what,(step,name,base) in pairs.items() if base == step])
def test_an_experiment_changes_exactly_one_thing(what):
    step,name,_ = pairs[what]
    def recipe(name):
        found = json.loads(experiments.recipe(name))
        return found | found.pop('warp', {})
    changed = recipe(step).items() - recipe(name).items()
    more = {'without-augmentation': 5, 'elastic-only': 4, 'constant-0.003': 2, 'constant-0.006': 2}
    assert len(changed) == more.get(name, 1)

@pytest.mark.parametrize('step,after', [('step1', step2), ('step2', step3), ('step3', None)])
def test_every_run_reaches_its_target_but_not_that_of_the_next_step(step, after):
    n = len(tested.loc[step])
    assert evidence.met(step) == f'{n} of {n}'
    if after: assert f'meets this in {evidence.met(step, after.target)} seeds' in re.sub(r'\s+', ' ', after.__doc__)

def test_intervals_and_signs(monkeypatch):
    monkeypatch.setattr(evidence, 'difference', lambda what: pd.Series([-.001, -.002, -.003]))
    assert evidence.words('without EMA', 4) == '-0.0020 ± 0.0025'  # Student's t, two degrees of freedom
    assert evidence.words('without EMA') == '+0.00 ± 0.00'

def test_the_gpu_of_the_readme():
    gpu = tested.loc['step3-GPU']
    mean = f'{gpu.accuracy.mean():.2f}% ± {evidence.half(gpu.accuracy):.2f}'
    seconds = f'{gpu.seconds.min()} to {gpu.seconds.max()} seconds'
    said = f'{mean}, lowest {gpu.lowest.min():.2f}%, target met {evidence.met("step3-GPU")}, {seconds} each'
    assert said in pages['README.md'].replace('\n', ' ')

def test_learning_rates_are_read_off_lr_find():
    for step in ('step1', 'step2'): assert rates.valley[step] < steps[step].lr < rates.slide[step]
    valley,minimum = rates.valley.step3,rates.minimum.step3
    assert valley < minimum < step3.lr < rates.steep.step3
    assert f'(median {minimum:.4f})' in readme and f'`valley`, {valley:.4f}' in readme

class ThreeEpochs(Callback):
    "Ends a fit early; its schedule is that of the whole."
    order = 1000
    def before_epoch(self):
        if self.epoch == 3: raise CancelFitException

@pytest.mark.mnist
@pytest.mark.parametrize('run', [('step1', 0, 0), ('step2', 0, 0), ('step3', 0, 0), ('step3', 1, 2)], ids=str)
def test_a_recorded_seed_trains_again_to_the_same_numbers(run):
    if run not in measured.index: pytest.skip('not recorded')
    step,fold,seed = run
    torch.set_num_threads(1)
    learn = steps[step].train(seed=seed, fold=fold or None, data='mnist', device='cpu', cbs=ThreeEpochs())
    off = (report.history(learn) - epochs.set_index([*key, 'epoch']).sort_index().loc[run]).abs()[:3]
    here = dict(processor=record.processor(), torch=torch.__version__, torchvision=torchvision.__version__,
                fastai=fastai.__version__)
    same = (measured.reindex(columns=[*here]).loc[run] == pd.Series(here)).all()
    if same: assert (off < 1e-9).all(axis=None)  # bit-identical, as far as it is told
    else: assert (off.train_accuracy[1:] < .003).all()

def test_the_lines_for_a_repl(monkeypatch):
    monkeypatch.chdir(project)
    *lines,last = re.findall(r'>>> (.*)', readme)
    for line in lines: exec(line, globals())
    assert round(100*eval(last)['min'], 4)['step3', 0] == tested.lowest['step3', 0]
