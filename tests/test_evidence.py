"Every number that a docstring or a README gives is recomputed from `results/`; the steps are the recipes that the numbers belong to."
import json, os, re, socket, subprocess, sys

import fastai, pytest, torch, torchvision
import pandas as pd
from fastai.vision.all import Callback, CancelFitException

import evidence, record, report, step1, step2, step3
from conftest import offline, project
from data import load_digits
from models import Model_1, Model_2, Model_5, count, layers

steps = dict(step1=step1, step2=step2, step3=step3)
runs,epochs = evidence.runs,evidence.epochs

@pytest.mark.parametrize('path', evidence.texts, ids=lambda p: str(p.relative_to(project)))
def test_every_table_and_row_is_as_recorded(path): assert evidence.fill(path) == path.read_text(encoding='utf-8')

def allowed(names):
    "All numbers that a text on experiments `names` may give: their summaries, and their differences."
    found = {v for name in names for v in evidence.summary(name).values()} | {'99.40', '1.35', '0.90', '0.60'}
    return found | {o for name in names if name != 'step1' for o in re.findall(r'[+-]?\d+\.\d+', evidence.words(name))}

@pytest.mark.parametrize('step', steps)
def test_every_number_of_a_step_is_in_its_tables(step):
    names = [step, 'step1' if step == 'step1' else evidence.base(step)]
    names += [n for n in evidence.changes().values() if evidence.base(n) == step]
    may = allowed([step, names[1]]) | {evidence.summary(name)['train'] for name in names}
    text = steps[step].__doc__.replace(f'{steps[step].target:.2%}', '')
    text = re.sub(r'.*(Adam|fit_one_cycle).*', '', text)  # hyperparameters
    rows = tuple(f'  {what}' for what in evidence.changes())
    assert all(row.endswith(rows) for row in re.findall(r'\n +[+-]\d.*', text))
    text = re.sub(r'\n +[+-]\d.*', '', text)  # the rows: the test above compares them whole
    numbers = set(re.findall(r'[+-]?\d+\.\d+', text))
    assert len(numbers) >= 3 and numbers <= may, numbers - may
    assert set(re.findall(r'from\s+epoch (\d+(?: to \d+)?)', text)) <= {evidence.summary(n)['first'] for n in names}

@pytest.mark.parametrize('page', ['README.md', 'results/README.md'])
def test_every_accuracy_in_prose_is_in_a_table(page):
    prose = re.sub(r'<!-- table.*?<!-- end -->|```.*?```', '', (project/page).read_text(encoding='utf-8'), flags=re.S)
    step,candidates = accuracy_on_folds()
    on_folds = {f'{100*accuracy:.2f}' for accuracy in (step, .9934, *candidates)}  # 99.34%: the bar for Model_5
    assert set(re.findall(r'\d\d\.\d\d(?=%)', prose)) <= allowed(runs[runs.fold == 0].experiment.unique()) | on_folds

def accuracy_on_folds():
    "Mean accuracy on the folds of step 3 and of each seed of the candidates for Model_5, fractions."
    found = epochs[(epochs.fold > 0) & (epochs.epoch > 10)]
    by_seed = found[found.experiment.str.fullmatch(r'step3-\d{6}')].groupby(['experiment', 'seed']).valid_accuracy.mean()
    return found[found.experiment == 'step3'].valid_accuracy.mean(), by_seed

def test_model_5_is_the_smallest_candidate_that_the_folds_took():
    _,by_seed = accuracy_on_folds()
    parameters,found = runs.groupby('experiment').parameters.first(),by_seed.unstack()
    passed = found[(found[0] >= .9934) & (found.mean(axis=1) >= .9934)]
    assert count(Model_5()) == parameters[passed.index].min() == parameters[name := 'step3-223354']
    bullet = next(o for o in (evidence.here/'README.md').read_text(encoding='utf-8').split('\n- ') if o.startswith('**Model_5**'))
    assert re.findall(r'\d\d\.\d\d%|\d,\d{3}', bullet)[1:] == [f'{parameters[name]:,}', *(f'{o:.2%}' for o in found.loc[name])]
    assert f'smallest of {len(found)}' in bullet

def test_numbers_of_the_nets_in_the_texts():
    def net(name): return record.experiments[name][1]['model']()
    kernel = max(row[2] for row in layers(Model_1()))
    text = re.sub(r'\s+', ' ', step1.__doc__)
    assert f'{kernel:,} of the {count(Model_1()):,} parameters' in text and f'{count(net("step1-half-channels")):,} parameters' in text
    assert f'Twice the channels, {count(net("step1-twice-channels")):,} parameters' in text
    text = re.sub(r'\s+', ' ', step2.__doc__)
    assert f'{count(record.large_kernel()):,} parameters' in text
    def fields(net): return '{} and {}'.format(*(a[3] for a,b in zip(layers(net), layers(net)[1:]) if b[0] == 'MaxPool2d'))
    assert f'Pooling is at receptive fields of {fields(Model_2())} pixels; one layer earlier' in text
    earlier,later = net('step2-pool-earlier'),fields(net('step2-pool-later'))
    assert f'earlier it is at {fields(earlier)} (the last map is {earlier[7].kernel_size[0]}×{earlier[7].kernel_size[1]} then)' in text
    assert f'one layer later at {later}' in text

def test_deviations_and_epochs_in_the_texts():
    for step,of in dict(step1=['step1'], step2=['step2'], step3=['step2', 'step3']).items():
        text = re.sub(r'\s+', ' ', steps[step].__doc__)
        assert re.findall(r'standard deviation of (\S+) percentage points', text) == [evidence.summary(name).sd for name in of]
    assert f'from epoch {evidence.summary("without-EMA").first} on, with it from epoch {evidence.summary("step3").first} on' in text
    last = (evidence.late('without-EMA', 1) - evidence.late('step3', 1)).dropna().squeeze()
    assert abs(last.mean()) <= evidence.interval(last) and 'after the last epoch alone its effect is inconclusive (exploratory)' in text

def test_what_the_texts_call_inconclusive_includes_zero():
    "And nothing else does."
    for step,names in dict(step1=['step1-lr-0.009'], step2=['step2-large-kernel', 'step2-pool-later'],
                           step3=['without-elastic', 'with-dropout', 'constant-0.006', 'wd-0.01', 'bs-128']).items():
        found = {n: evidence.difference(n) for n in evidence.changes().values() if evidence.base(n) == step and n not in steps}
        assert {n for n,d in found.items() if abs(d.mean()) <= evidence.interval(d)} == {*names} and 'inconclusive' in steps[step].__doc__

def test_wrong_numbers_are_put_right(tmp_path):
    page,text = tmp_path/'step2.py','recorded: {}\n{}  all of step 2, against step 1\n<!-- table steps -->\n{}\n<!-- end -->\n'
    page.write_text(text.format('12%', '-9.99 ± 0.01', 'old'), encoding='utf-8')
    assert evidence.fill(page) == text.format(evidence.result('step2'), evidence.row('step2'), f'\n{evidence.steps_table()}\n')

def test_recorded_runs_are_whole():
    assert not runs.duplicated(record.key).any() and not epochs.duplicated([*record.key, 'epoch']).any()
    assert set(runs.commit.str.len()) <= {7, 8} and set(runs.experiment) <= set(record.experiments)  # of a commit, not of a changed tree
    whole = epochs.groupby(record.key)
    assert set(whole.groups) == {tuple(o) for o in runs[record.key].to_numpy().tolist()}
    for run in runs.itertuples():
        rows,n = whole.get_group((run.experiment, run.fold, run.seed)),json.loads(run.recipe)['epochs']
        assert rows.epoch.tolist() == [*range(1, n+1)]
        if isinstance(run.wrong, str): assert len(run.wrong.split()) == round(10_000*(1 - rows.valid_accuracy.iloc[-1]))
    assert f'{runs.wrong.isna().sum()} older runs lack them' in (evidence.here/'README.md').read_text(encoding='utf-8')
    for name,found in runs[runs.fold == 0].groupby('experiment'): assert sorted(found.seed) == [*range(len(found))]  # none is left out

@pytest.mark.parametrize('name', runs.experiment.unique())
def test_the_code_is_the_recipe_that_the_numbers_belong_to(name):
    assert set(runs[runs.experiment == name].recipe.map(json.dumps)) == {json.dumps(record.recipe(name))}

@pytest.mark.parametrize('name', [n for n,(step,change,what) in record.experiments.items() if change and what])
def test_an_experiment_changes_exactly_one_thing(name):
    mine,base = (json.loads(record.recipe(o)) for o in (name, evidence.base(name)))
    other = [k for k in base if mine.get(k) != base[k]]
    assert other == (['lr', 'pct_start'] if name.startswith('constant') else other[:1])
    limits = [k for k in base.get('warp', []) if mine['warp'][k] != base['warp'][k]]
    assert len(limits) == {'without-augmentation': 5, 'elastic-only': 4}.get(name, other == ['warp'])

def test_every_run_reaches_its_target_but_not_that_of_the_next_step():
    for step in steps: assert evidence.met(step) == len(evidence.test_runs(step))
    for step,after in (('step1', step2), ('step2', step3)):
        met,n = evidence.met(step, after.target),len(evidence.test_runs(step))
        assert met < n and f'meets this in {met} of {n} seeds' in re.sub(r'\s+', ' ', after.__doc__)

def test_intervals_and_signs(monkeypatch):
    d = pd.Series([.1, .2, .3, .2, .2])
    assert evidence.interval(d) == pytest.approx(2.776*d.std()/5**.5, rel=1e-3)  # Student's t, four degrees of freedom
    assert evidence.interval(d, extra=1/5) == pytest.approx(evidence.interval(d)*2**.5)
    for value,said in ((-.001, '+0.00 ± 0.00'), (-.006, '-0.01 ± 0.00')):
        monkeypatch.setattr(evidence, 'difference', lambda name: pd.Series([value]*3))
        assert evidence.words('step3') == said

def test_the_steps_are_what_the_rules_took():
    for name in runs[(runs.fold > 0) & ~runs.experiment.isin(steps)].experiment.unique():
        assert evidence.decided(name) in ('stays', 'no', 'undecided') or name == 'without-crop', name  # the crop stays for speed
    for name,(_,*others) in record.values.items(): assert {evidence.decided(f'{name}-{o}') for o in others} == {'no'}  # "refuses all"

def on_folds(monkeypatch, name, **losses):
    "Two recipes' runs: for each a list of losses per fold, one for each seed."
    found = [dict(experiment=n, fold=f, seed=s, epoch=1, valid_loss=l, valid_accuracy=1-l/100) for n,folds in losses.items()
             for f,seeds in enumerate(folds, 1) for s,l in enumerate(seeds)]
    monkeypatch.setattr(evidence, 'epochs', pd.DataFrame(found).replace({'experiment': {'old': 'step3', 'new': name}}))
    return evidence.decided(name)

def test_the_rules(monkeypatch):
    old,lower,higher = [[2, 4]]*6,[2.5, 3],[3, 3.5]  # the mean of the old recipe's runs counts: 3
    def rule(new): return on_folds(monkeypatch, 'wd-0.3', old=old, new=new)
    assert rule([lower]*5 + [higher]) == 'taken'
    assert rule([lower]*4 + [higher]*2) == rule([[2.5], [2.5]]) == 'no'  # one seed against the same one, not against the mean
    assert rule([[1.5]]*6) == rule([lower]*5) == 'undecided'  # one seed; five folds
    assert rule([lower]*5 + [[9, 9]]) == 'no'  # accuracy lower
    def second_rule(new): return on_folds(monkeypatch, 'without-EMA', old=old, new=new)
    assert second_rule([higher]*5 + [lower]) == 'stays' and second_rule([higher]*4 + [lower]*2) == 'not needed'
    assert second_rule([[3.5]]*6) == 'undecided'

def test_learning_rates_are_read_off_lr_find():
    found = pd.read_csv(evidence.here/'lr_find.csv').groupby('step').median()
    for step in ('step1', 'step2'): assert found.valley[step] < steps[step].lr == step1.lr < found.slide[step]
    assert found.valley.step3 < found.minimum.step3 < step3.lr < found.steep.step3
    text = (evidence.here/'README.md').read_text(encoding='utf-8')
    assert f'`valley` is {found.valley.step3:.4f}' in text and f'`minimum`, {found.minimum.step3:.4f}' in text

def test_times_in_the_readme():
    seconds = pd.read_csv(evidence.here/'speed.csv')
    assert seconds['all of `step3.py --epochs 4`'].max() < 60  # "under a minute"
    assert 2 < 15*seconds['step3.py'].max()/60 < 3             # "three minutes", with start and pictures
    found,k = evidence.test_runs('step3-GPU'),evidence.summary('step3-GPU')
    assert set(found.device) == {'NVIDIA H100 80GB HBM3'} and len(found) == 10
    text = re.sub(r'\s+', ' ', (project/'README.md').read_text(encoding='utf-8'))
    assert f'On an H100, ten seeds of step 3: {k.mean}% ± {k.half}, lowest {k.lowest}%, target met {k.met}, ' \
           f'{found.seconds.min()} to {found.seconds.max()} seconds each' in text

class Epochs(Callback):
    "Ends a fit after three epochs, the schedule being that of the whole."
    order = 1000
    def before_epoch(self):
        if self.epoch == 3: raise CancelFitException

@pytest.mark.mnist
@pytest.mark.parametrize('step', steps)
def test_a_recorded_seed_trains_again_to_the_same_numbers(step):
    run,was = evidence.test_runs(step).loc[0],torch.get_num_threads()
    torch.set_num_threads(int(run.threads))
    now = report.history(steps[step].train(seed=0, data='mnist', cbs=Epochs()))
    here = dict(threads=torch.get_num_threads(), device='cuda' if torch.cuda.is_available() else 'cpu', torch=torch.__version__,
                torchvision=torchvision.__version__, fastai=fastai.__version__, cpu=torch.backends.cpu.get_cpu_capability())
    torch.set_num_threads(was)
    then = epochs[(epochs.experiment == step) & (epochs.fold == 0) & (epochs.seed == 0)].set_index('epoch')[list(now)].loc[:3]
    if all(run[k] == v for k,v in here.items()): assert now.equals(then)  # bit-identical, as far as it is told
    else: assert (abs(now - then).train_accuracy[1:] < .003).all()

def test_only_mnist_is_recorded_in_the_tables(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['record.py', 'step1', '--data', 'digits', '--to', os.path.relpath(record.here)])
    with pytest.raises(SystemExit, match='2'): record.main()

def test_a_run_is_recorded_as_it_was():
    (run,rows),(_,held) = (record.train('step3-4epochs', fold, 0, 'digits') for fold in (0, 1))
    assert rows.valid_loss.iloc[-1] != held.valid_loss.iloc[-1] and run['clean_accuracy'] != rows.valid_accuracy.iloc[-1]
    labels = load_digits()[1][1]
    assert run['wrong'] and all(labels[int(i)] != int(guess) for i,guess in (o.split(':') for o in run['wrong'].split()))

def test_folds_are_recorded_for_every_seed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('dask.distributed.Client', lambda **kwargs: sys.exit())  # before anything is trained
    monkeypatch.setattr(sys, 'argv', ['record.py', 'step1', '--folds', '--seeds', '2', '--to', str(tmp_path)])
    with pytest.raises(SystemExit): record.main()
    assert capsys.readouterr().out == '12 runs to record\n'

def test_a_recording_survives_kills(tmp_path):
    "Of the recording, between its two files as well, and of one of the two workers of a Dask cluster: every run is there once."
    started = []
    def start(*line):
        started.append(subprocess.Popen([sys.executable, *map(str, line)], cwd=project, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        text=True, env={**os.environ, **offline, 'PYTHONPATH': 'results'}))
        return started[-1]
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        at = f'tcp://127.0.0.1:{s.getsockname()[1]}'
    run,epochs = record.train('step3-4epochs', 0, 0, 'digits')  # what a killed recording left: a whole run, and half of another
    record.append(tmp_path, {**run, 'commit': 'none'}, pd.concat([epochs, epochs.iloc[:1].assign(seed=1)]))
    try:
        start('-m', 'dask', 'scheduler', '--host', at, '--no-dashboard')
        workers = [start('-m', 'dask', 'worker', at, '--nthreads', 1, '--no-nanny', '--no-dashboard') for _ in range(2)]
        recording = start('results/record.py', 'step3-4epochs', '--data', 'digits', '--to', tmp_path, '--scheduler', at, '--seeds', 5)
        assert recording.stdout.readline() == '4 runs to record\n' and recording.stdout.readline()
        workers[0].kill()
        assert recording.wait(100) == 0
    finally:
        for o in started: o.kill(), o.communicate()
    found,epochs = (pd.read_csv(tmp_path/f'{name}.csv') for name in ('runs', 'epochs'))
    assert sorted(found.seed) == [0, 1, 2, 3, 4] and len(epochs) == 4*5
    again = record.train('step3-4epochs', 0, 4, 'digits')[1]  # a worker's other threads change nothing
    assert epochs[epochs.seed == 4].reset_index(drop=True).equals(again)
