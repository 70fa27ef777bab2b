#!/bin/bash

{% for name, value in sbatch.items() -%}
#SBATCH --{{ name }}{{ "" if value is true else "=" ~ value }}
{% endfor %}
# setup
{{ setup_lines }}

# command
{{ srun }} {{ python }} -u -m launch.task {{ command }}
# teardown
{{ teardown_lines }}
