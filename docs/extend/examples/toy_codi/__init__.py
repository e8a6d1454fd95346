"""An example package that extends CoDi Hub."""
