# Installs the tool.  make reads this after the Makefile of a build of CPython,
# which knows where things belong and has an interpreter.

COMMAND = $(DESTDIR)$(BINDIR)/pymalloc-hugepages
MAN1 = $(DESTDIR)$(MANDIR)/man1
BASH_COMPLETIONS = $(DESTDIR)$(datarootdir)/bash-completion/completions
ZSH_COMPLETIONS = $(DESTDIR)$(datarootdir)/zsh/site-functions

# What completes its arguments in a shell is made where the system's Python has
# shtab for it; if not, nothing else is missing.
install-tool:
	$(INSTALL) -d -m 755 $(DESTDIR)$(BINDIR) $(MAN1)
	$(RUNSHARED) $(TOP)/build-aux/zip-tool.sh $(COMMAND) \
	    $(BINDIR)/python$(VERSION)$(EXE) $(PYTHON_FOR_BUILD)
	$(INSTALL_DATA) $(TOP)/Tools/pymalloc_hugepages/hugepages/pymalloc-hugepages.1 $(MAN1)
	@if python3 $(COMMAND) --completion bash >completion.bash && \
	    python3 $(COMMAND) --completion zsh >completion.zsh; then \
	    $(INSTALL) -d -m 755 $(BASH_COMPLETIONS) $(ZSH_COMPLETIONS) && \
	    $(INSTALL_DATA) completion.bash $(BASH_COMPLETIONS)/pymalloc-hugepages && \
	    $(INSTALL_DATA) completion.zsh $(ZSH_COMPLETIONS)/_pymalloc-hugepages; \
	else \
	    echo "installed without completion of the tool's arguments"; \
	fi

.PHONY: install-tool
