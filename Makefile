# make demo: from nothing to a named mushroom, offline after pip. make test: what CI runs. make bench: side by side with
# peers, an hour on an idle machine. make browser: the page in a real Chromium. Each makes .venv itself.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
DATA ?= data/drawn

.PHONY: demo test browser bench clean

demo: $(VENV)/.user
	$(PY) data/draw.py --out data/drawn --per-class 25
	$(PY) main.py --data data/drawn --model tf_efficientnet_lite0 --image-size 128 --epochs 2 --batch 32
	$(PY) predict.py data/drawn/Amanita/amanita_0001.jpg
	@echo
	@echo "That was the whole way. Next, your own photos, one folder for each class:"
	@echo "  $(PY) main.py --data FOLDER --model tf_efficientnet_lite0 --image-size 224 --epochs 8 --batch 32 --mixup 0 --rho 0   (a laptop)"
	@echo "  $(PY) main.py --data FOLDER --epochs 30 --batch 64                                                                  (a GPU)"

test: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/hadolint Dockerfile Dockerfile.cuda
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

browser: $(VENV)/.dev
	$(PY) -m pip install --quiet playwright
	command -v chromium > /dev/null || $(PY) -m playwright install chromium
	mkdir -p runs
	$(PY) -m pytest tests/browser_page.py --basetemp=runs/browser -o tmp_path_retention_policy=all

bench: $(VENV)/.bench
	test -d $(DATA) || $(PY) data/draw.py --out $(DATA) --per-class 25
	$(PY) -m benchmarks --data $(DATA)

# The stamps: a changed requirements file installs again, an unchanged one costs nothing.
$(VENV)/.user: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is %s. Try: make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV) || { echo "python's venv is missing. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements-extra.txt $(VENV)/.user
	$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

$(VENV)/.bench: benchmarks/requirements.txt requirements-extra.txt $(VENV)/.user
	$(PY) -m pip install --quiet -r benchmarks/requirements.txt
	@touch $@

clean:
	rm -rf $(VENV)
