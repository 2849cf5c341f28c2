"The texts and tables give the numbers of the recorded runs, each at its place; the code is what was recorded."
import json, re

import fastai, numpy as np, pandas as pd, pytest, torch, torchvision
from fastai.vision.all import Callback, CancelFitException

import data, evidence, experiments, models, record, report, step1, step2, step3
from conftest import project
from evidence import difference_text, epochs, measured, met, pairs, runs, since, tested
from experiments import key, recipe

steps = dict(step1=step1, step2=step2, step3=step3)
pages = {name: (project/name).read_text(encoding='utf-8') for name in ('README.md', 'USING.md', 'results/README.md')}
rates = pd.read_csv(evidence.here/'lr_find.csv').groupby('step').median(numeric_only=True)
times = pd.read_csv(evidence.here/'speed.csv')

# ---- The numbers of a text, in their order ---------------------------------------------------------------------------

def numbers(text): return re.findall(r'\d+(?:[.,]\d+)*', text)

class Figures:
    "What a text may say of an experiment, as it is printed."
    def __init__(self, name):
        found = tested.loc[name]
        self.parameters = f'{found.parameters[0]:,}'
        self.train = f'{100*found.clean_accuracy.mean():.2f}'
        self.test = f'{found.final.mean():.2f}'
        self.gap = f'{float(self.train) - float(self.test):.2f}'  # a reader subtracts these
        self.mean = f'{found.accuracy.mean():.2f}'
        self.margin = f'{evidence.margin(found.accuracy):.2f}'
        self.lowest = f'{found.lowest.min():.2f}'
        self.sd = f'{found.sd.mean():.2f}'
        self.last_seed = len(found) - 1

def size(what): return numbers(difference_text(what))[0]
def both(text): return ' '.join(numbers(text))
def suggestion(step, name): return f'{rates.loc[step, name]:.4f}'
def ratio(way): return f"{(times[way]/times['step2.py']).median():.2f}"
def target(step): return f'{100*step.target:.2f}'
def errors(step): return f'{100*(1 - step.target):.2f}'
def result(f): return f'{f.parameters} {f.train} {f.test} 15 {f.mean} {f.margin} {f.lowest} 0 {f.last_seed} 95'
def channels(net):
    found = [layer.out_channels for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
    return ' '.join(map(str, found[:6]))

one,two,three = map(Figures, steps)
twice = Figures('step1-twice-channels')
plain = Figures('step2-plain-filters')
large = Figures('step2-large-kernel')
no_dropout = Figures('step2-without-dropout')
large_kernel = models.layers(models.Model_1())[-2][2]
neither = 'a constant learning rate of {}, without the average'
rest_of_3 = 'schedule, weight decay and average, against step 2 without dropout'

expected = dict(
    step1=f"""1
        {target(step1)} {target(step3)} {errors(step3)} 2 3 {errors(step1)} {errors(step2)} {errors(step3)}
        {result(one)}
        {one.gap} {one.sd} 95
        {twice.parameters} 8,000 2 {large_kernel:,} {one.parameters} 2
        {step1.lr} {suggestion('step1', 'valley')} {suggestion('step1', 'slide')}""",
    step2=f"""2 4
        {target(step2)} 1 {errors(step2)} {errors(step1)} 1 {both(met('step1', step2.target))} {one.mean} 1
        {result(two)}
        {two.gap} {no_dropout.gap} 1
        {size('the net without dropout, against step 1')} 1 {size('without dropout')}
        {size('all of step 2, against step 1')}
        95 4 {channels(models.Model_2())} {channels(models.Model_1())}
        {channels(experiments.plain_filters())} {plain.parameters} {large.parameters}
        24 24 {ratio('step2.py on all 28×28 pixels')} {ratio('step2.py with pooling after batch norm and SiLU')}
        5 {suggestion('step2', 'valley')} {suggestion('step2', 'slide')}
        3 {two.sd}""",
    step3=f"""3
        {target(step3)} 2 {both(met('step2', step3.target))} {two.sd}
        {result(three)}
        2 {three.gap} {three.sd} 95
        {size(neither.format(step2.lr))} 2 {size(neither.format(.006))} 0.006
        {size('without the average of the weights')}
        2 {size('without dropout')} {size(rest_of_3)} {size('without augmentation')}
        {size('all of step 3, against step 2')}
        {target(step3)} {both(since('step3'))} {both(since('without-average'))}
        9 4 5 3 4 9 {step3.lr} {suggestion('step3', 'valley')} {suggestion('step3', 'minimum')}""")

def check(text, expected): assert numbers(text) == expected.split()

@pytest.mark.parametrize('step', steps)
def test_every_number_of_a_step_is_the_recorded_one(step):
    text = steps[step].__doc__
    rows = re.findall(r'\n {8}([+-].*)', text)
    shown = [re.split('  +', row)[-1] for row in rows]
    assert rows == [evidence.row(what) for what in shown]
    assert {pairs[what][0] for what in shown} == {step}
    check(re.sub(r'\n {8}[+-].*', '', text), expected[step])

held = numbers(*evidence.seeds_on_folds())
gpu = tested.loc['step3-GPU']
gpu_figures = Figures('step3-GPU')
def by_chance(accuracy):
    "How far the accuracy of 10,000 images may be off, in percentage points."
    p = float(accuracy)/100
    return f'{196*np.sqrt(p*(1 - p)/10_000):.2f}'

expected_of_pages = {
    'README.md': f"""99.4 8,000 99.4 8,000
        {both(since('step3'))} {target(step3)} 95 {by_chance(three.mean)} 1.96 10,000 {held[5]}
        3.11 3.14
        7,547 99.31 7,873 99.26 {step3.wd} 7,873 99.45""",
    'USING.md': f"""1,797 {gpu_figures.mean} {gpu_figures.margin} {gpu_figures.lowest} {both(met('step3-GPU'))}
        {gpu.seconds.min()} {gpu.seconds.max()}""",
    'results/README.md': f"""60,000 1 6 3.11 95 5 {target(step3)} 25 28 0 4 0.006 0.03 98.30 98.80 12 95
        {held[1]} 0 2 3 5 {step1.lr} {step3.lr} {suggestion('step3', 'minimum')} {suggestion('step3', 'valley')} 95"""}

@pytest.mark.parametrize('page', pages)
def test_the_tables_and_the_numbers_of_a_page_are_as_recorded(page):
    text = pages[page]
    assert evidence.fill(text) == text
    prose = re.sub(r'(?s)<!-- table.*?<!-- end -->|```.*?```|\]\([^)]*\)', '', text)
    results = re.findall(r'\d+(?:[.,]\d+)+|\d+(?=%)|\d+ (?:of|to) \d+', prose)
    check(' '.join(results), expected_of_pages[page])

@pytest.mark.mnist
def test_the_digits_that_step_3_confuses():
    found = evidence.mistakes('step3')
    labels = data.mnist_dls('mnist', device='cpu').valid_ds.y.numpy()
    found['digit'] = labels[found.image]
    often = found.value_counts(['digit', 'taken_for']).index[:3]
    said = re.findall(r'(\d) (?:is read )?as (\d)', step3.__doc__)
    assert [(int(digit), int(taken_for)) for digit,taken_for in said] == [*often]

def test_intervals_and_signs(monkeypatch):
    monkeypatch.setattr(evidence, 'difference', lambda what: pd.Series([-.001, -.002, -.003]))
    assert difference_text('any', 4) == '-0.0020 ± 0.0025'  # Student's t, two degrees of freedom
    assert difference_text('any') == '+0.00 ± 0.00'

def test_learning_rates_are_read_off_lr_find():
    for step in ('step1', 'step2'): assert rates.valley[step] < steps[step].lr < rates.slide[step]
    assert rates.valley.step3 < rates.minimum.step3 < step3.lr < rates.steep.step3

# ---- What was recorded -----------------------------------------------------------------------------------------------

def test_recorded_runs_are_whole():
    assert not runs.commit.str.contains('dirty|unknown').any()
    rows = epochs.groupby(key).epoch.agg(list)
    assert len(rows) == len(runs)
    for run in runs.set_index(key).itertuples():
        assert rows[run.Index] == [*range(1, 1 + json.loads(run.recipe)['epochs'])]
    assert {*runs.experiment[runs.device != 'cpu']} == {'step3-GPU'}
    for run in tested.itertuples(): assert len(run.wrong.split()) == round(10_000 - 100*run.final)
    for name in runs.experiment[runs.fold == 0]:
        seeds = tested.loc[name].index
        assert [*seeds] == [*range(len(seeds))]  # none is left out

@pytest.mark.parametrize('name', experiments.experiments)
def test_the_code_is_the_recipe_that_was_recorded(name):
    assert {*runs.recipe[runs.experiment == name]} <= {recipe(name)}

def test_an_experiment_changes_exactly_one_thing():
    more = {'without-augmentation': 5, 'elastic-only': 4, 'constant-0.003': 2, 'constant-0.006': 2,
            'constant-0.003-without-average': 3, 'constant-0.006-without-average': 3}
    def settings(name):
        found = json.loads(recipe(name))
        return found | found.pop('warp', {})
    for step,name,base in pairs.values():
        changed = settings(base).items() - settings(name).items()
        if base == step: assert len(changed) == more.get(name, 1)

def test_every_run_reaches_its_target():
    for step in steps:
        n = len(tested.loc[step])
        assert met(step) == f'{n} of {n}'

class ThreeEpochs(Callback):
    "Ends a fit early; its schedule is that of the whole."
    order = 1000
    def before_epoch(self):
        if self.epoch == 3: raise CancelFitException

@pytest.mark.mnist
@pytest.mark.parametrize('run', [('step1', 1, 2), ('step2', 1, 2), ('step3', 1, 2), ('step3', 0, 0)], ids=str)
def test_a_recorded_seed_trains_again_to_the_same_numbers(run):
    step,fold,seed = run
    torch.set_num_threads(1)
    learn = steps[step].train(seed=seed, fold=fold, data='mnist', device='cpu', cbs=ThreeEpochs())
    now = report.history(learn)
    then = epochs.set_index([*key, 'epoch']).sort_index().loc[run][:3]
    here = dict(processor=record.processor(), torch=torch.__version__, torchvision=torchvision.__version__,
                fastai=fastai.__version__)
    if (measured.loc[run, [*here]] == pd.Series(here)).all(): assert np.allclose(now, then, rtol=0, atol=1e-9)
    else:  # the same but for rounding, which training amplifies
        off = (now - then).abs()[1:]
        assert (off.train_accuracy < .003).all()
        assert (off.valid_accuracy < .004).all()
        assert (off.valid_loss < .01).all()

def test_the_lines_for_a_repl(monkeypatch):
    monkeypatch.chdir(project)
    *lines,last = re.findall(r'>>> (.*)', pages['results/README.md'])
    for line in lines: exec(line, globals())
    assert round(100*eval(last)['min'], 4)['step3', 0] == tested.lowest['step3', 0]

def test_an_idea_is_one_line_of_the_table():
    line, = re.findall(r"^('.*),$", pages['results/README.md'], re.M)
    (name,(step,arguments,_)), = eval(f'{{{line}}}', vars(experiments)).items()
    assert name not in experiments.experiments
    assert step.train(epochs=1, data='digits', **arguments).dls.train.after_batch
