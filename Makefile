# make demo   labels, names, captions and explains the photos in samples/ with the shipped checkpoints
# make report   runs every script on them and makes the report of all three years
# make test   runs ruff and the test suite
# Both create .venv and install what they need there; only make and Python 3.10 or newer must exist.

PYTHON ?= python3
BIN := .venv/bin
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: demo report test install clean

demo: .venv/installed
	@mkdir -p runs/demo
	@$(IN_VENV) bash hw3_1.sh samples runs/demo/labels.csv
	@$(IN_VENV) bash hw3_1.sh samples/scenes samples/scenes/id2label.json runs/demo/names.csv
	@$(IN_VENV) bash hw3_2.sh samples/scenes runs/demo/captions.json
	@$(IN_VENV) bash hw3_2.sh samples/scenes runs/demo/words > runs/demo/words.json
	@echo "The labels: $(CURDIR)/runs/demo/labels.csv, and by name: $(CURDIR)/runs/demo/names.csv"
	@echo "The captions: $(CURDIR)/runs/demo/captions.json"
	@echo "What each word looked at, for example: $(CURDIR)/runs/demo/words/sheep.png"
	@echo "To run the Python scripts yourself: source .venv/bin/activate"

report: .venv/installed
	@$(IN_VENV) bash hw3_report.sh runs/report
	@echo "The report: $(CURDIR)/runs/report/report.html"

test: .venv/installed-tests
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations 8

install: .venv/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "installing what requirements.txt names: several GB, a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-tests: .venv/installed tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

# runs/ also holds trainings, which stay.
clean:
	rm -rf .venv runs/demo runs/report
