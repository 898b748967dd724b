"""What theory says beside what is measured: quadratics, curvature, and trials run again for their params."""
