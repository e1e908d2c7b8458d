"""Result files in; figures, flame graphs and one self-contained HTML page out."""
